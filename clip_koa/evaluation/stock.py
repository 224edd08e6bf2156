"""What a checkpoint grades in stock transformers pipelines, without any code of ours."""

import torch
from accelerate.utils import gather_object
from datasets import Dataset, Image
from PIL import ImageOps
from tqdm.auto import tqdm
from transformers import CLIPForImageClassification, CLIPModel, pipeline

from clip_koa.evaluation.heads import Predictions, grading, measure_heads
from dataset_script.radiograph import read_stored_image
from modeling_clip_koa import CLIPKOAError

# What stock pipelines read a grade from: the text tower by zero-shot, and the linear head.
STOCK_HEADS = ("text", "linear")


class StockError(CLIPKOAError, ValueError):
    """A checkpoint that stock pipelines do not grade as they should; the message says what was found."""


def predict_stock(name: str, split: Dataset, accelerator, batch_size: int) -> Predictions:
    """Grades a split and its mirror images in the stock pipelines.

    The text head's place takes `zero-shot-image-classification` on stock `CLIPModel`, with the first prompt of each
    grade as its candidates; the linear head's `image-classification` on stock `CLIPForImageClassification`. A pipeline
    gives probabilities, so the logits are their logarithms.

    Args:
        name: model folder or Hub id.
        split: of the `KneeXray` builder; each process grades its share.

    Raises:
        StockError: a pipeline that loads another class, or a checkpoint without prompts.
    """
    linear = pipeline("image-classification", model=name, device=accelerator.device)
    zero_shot = pipeline("zero-shot-image-classification", model=name, device=accelerator.device)
    for grader, expected in ((linear, CLIPForImageClassification), (zero_shot, CLIPModel)):
        if type(grader.model) is not expected:
            raise StockError(f"{name} loads as {type(grader.model).__name__}, not as stock {expected.__name__}.")
    prompts = getattr(zero_shot.model.config, "prompts", None)
    if not prompts:
        raise StockError(f"{name}: its config.json names no prompts; --stock needs a CLIP-KOA checkpoint.")
    candidates = [texts[0] for texts in prompts]
    labels = [linear.model.config.id2label[grade] for grade in range(len(candidates))]

    def grade(images):
        by_text = zero_shot(images, candidate_labels=candidates, hypothesis_template="{}", batch_size=batch_size)
        by_linear = linear(images, top_k=len(labels), batch_size=batch_size)
        return list(zip(_log_scores(by_text, candidates), _log_scores(by_linear, labels), strict=True))

    stored = split.cast_column("image", Image(decode=False))
    own = list(range(accelerator.process_index, len(stored), accelerator.num_processes))
    rows = []
    starts = range(0, len(own), batch_size)
    for start in tqdm(starts, desc="stock pipelines", unit="batch", disable=not accelerator.is_local_main_process):
        batch = own[start : start + batch_size]
        images = [_read(stored[index]["image"]) for index in batch]
        as_given, mirrored = grade(images), grade([ImageOps.mirror(image) for image in images])
        for index, (text, classifier), (flipped_text, flipped_classifier) in zip(
            batch, as_given, mirrored, strict=True
        ):
            rows.append((index, text, flipped_text, classifier, flipped_classifier))
    index, *logits = zip(*sorted(gather_object(rows)), strict=True)
    return Predictions(torch.tensor(index), torch.tensor(split["label"])[list(index)], *map(torch.tensor, logits))


def measure_stock(ours: Predictions, stock: Predictions, people: list[str]) -> dict[str, dict]:
    """Metrics of the stock pipelines with intervals over people, and how near they are to our code.

    Returns:
        `text` and `linear`, each of `kl_grading_metrics`, and `agreement`: for both, `same_grade` (share of
        X-rays) and `largest_difference` of a probability.
    """
    measured = measure_heads(stock, people)
    results = {head: measured[head] for head in STOCK_HEADS}
    results["agreement"] = {}
    for head in STOCK_HEADS:
        one, other = grading(ours, head), grading(stock, head)
        results["agreement"][head] = {
            "same_grade": float((one["predictions"] == other["predictions"]).mean()),
            "largest_difference": float(abs(one["probabilities"] - other["probabilities"]).max()),
        }
    return results


def _read(stored: dict):
    # The pipelines would turn other modes into RGB in ways of their own.
    return read_stored_image(stored).convert("RGB")


def _log_scores(results: list[list[dict]], names: list[str]) -> list[list[float]]:
    """Logarithms of the scores of each image, in the order of `names`; a score of 0 becomes the least fp32 one."""
    tiny = torch.finfo(torch.float32).tiny
    tables = [{row["label"]: row["score"] for row in scores} for scores in results]
    return torch.tensor([[table[name] for name in names] for table in tables]).clamp_min(tiny).log().tolist()
