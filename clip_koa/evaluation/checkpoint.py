"""Evaluates a checkpoint on a split: plain, in stock pipelines, and with the X-rays perturbed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from accelerate import Accelerator
from datasets import Dataset
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from clip_koa.data.loader import XrayDataset
from clip_koa.evaluation.comparison import describe_comparison
from clip_koa.evaluation.heads import Predictions, describe_results, evaluate, predict
from clip_koa.evaluation.loading import load_checkpoint, load_split, weights_digest
from clip_koa.evaluation.pairs import measure_pairs, pairs_of_split
from clip_koa.evaluation.perturbation import check_perturbations
from clip_koa.evaluation.predictions import GradedSplit, write_predictions
from clip_koa.evaluation.robustness import measure_robustness, predict_perturbed
from clip_koa.evaluation.stock import measure_stock, predict_stock
from clip_koa.locks import WriterLock, only_writer
from modeling_clip_koa import CLIPKOAError
from modeling_clip_koa.calibration_clip_koa import pair_prior
from modeling_clip_koa.preprocessing_clip_koa import turns_of


class EvaluationError(CLIPKOAError, ValueError):
    """An evaluation that can't be asked for so; the message says what would be right."""


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate, and how.

    Raises:
        EvaluationError: a number of readings that is none of `READINGS`, or several of them beside stock pipelines.
    """

    model: str  # model folder or Hub id
    output: Path  # folder for the predictions
    data_dir: str | None = None  # None: the environment's KNEE_XRAY_DIR
    split: str = "validation"
    batch_size: int = 16  # X-rays at once on each process
    num_workers: int = 0  # processes that decode X-rays
    mixed_precision: str = "no"
    stock: bool = False  # also in stock pipelines
    perturb: tuple[str, ...] = ()  # names of perturbations, or all
    pairs: bool = False  # also both knees of a person together
    readings: int = 1  # of `READINGS`: over how many an X-ray's logits are averaged

    def __post_init__(self):
        turns_of(self.readings, "--readings ", EvaluationError)
        if self.stock and self.readings > 1:
            raise EvaluationError(
                f"--readings {self.readings} --stock: stock pipelines read an X-ray once, so how near they are to it "
                "can't be told. Leave one of the two out."
            )


@dataclass(frozen=True)
class Evaluation:
    """What was found."""

    about: dict[str, str]  # what was evaluated and how, so that the figures can be had again
    results: dict  # of `evaluate` with people, so that figures have intervals
    graded: GradedSplit  # the predictions that they are of
    xrays: Dataset
    stock: dict | None  # for `text` and `linear` the metrics of the stock pipelines, and `agreement` with ours
    robustness: dict | None  # of `measure_robustness`
    perturbed: dict[str, Predictions]  # by perturbation
    pairs: dict | None = None  # of `measure_pairs`


def evaluate_checkpoint(request: EvaluationRequest, write_report: Callable[[Evaluation], Path]) -> None:
    """Evaluates, writes the predictions and the report, and prints the figures.

    It runs in each process of a launch; the first writes.

    Args:
        write_report: writes the report of what was found; returns its page.

    Raises:
        InUseError, WriteError: another process writes the folder, or it cannot be written.
        PerturbationError: an unknown perturbation, or one whose package is missing.
        CheckpointError, CorpusError, RadiographError, StockError: model or data cannot be read.
        CalibrationError, NoPairsError: `pairs` of a checkpoint without a pair prior, or of a split without two knees.
        NotFiniteError: the model's logits are not finite.
    """
    accelerator = Accelerator(mixed_precision=request.mixed_precision)
    with only_writer(accelerator, WriterLock(request.output, inside=True)):
        found = _evaluate(request, accelerator)
        if found:
            page = write_report(found)
            print(describe_results(found.results))
            if found.pairs:
                print(f"Each knee alone (first), and both of {found.pairs['num_pairs']} people together (second):")
                print(describe_comparison(found.pairs))
            print(f"Report: {page}")
    # The last collective must carry no tensor: gloo frees its tensors in a thread of its own that needs Python's lock,
    # which ending the process group may hold while it waits for that thread.
    accelerator.wait_for_everyone()
    accelerator.end_training()


def _evaluate(request: EvaluationRequest, accelerator: Accelerator) -> Evaluation | None:
    """Grades the split, plain, in stock pipelines and perturbed as asked; None on all but the main process."""
    perturbations = check_perturbations(request.perturb)
    split, digest = load_split(request.data_dir, request.split, accelerator)
    model, image_processor = load_checkpoint(request.model)
    pairs = pairs_of_split(split) if request.pairs else None
    prior = pair_prior(model.beside.calibration) if request.pairs else None
    model = model.to(accelerator.device)

    def predict_split(xrays, title):
        dataset = XrayDataset(xrays, image_processor)
        batches = accelerator.prepare(DataLoader(dataset, request.batch_size, num_workers=request.num_workers))
        bar = tqdm(batches, desc=title, unit="batch", disable=not accelerator.is_local_main_process)
        predictions = predict(model, bar, accelerator, readings=request.readings)
        accelerator.free_memory()  # or it would hold every perturbed split to the end
        return predictions

    predictions = predict_split(split, request.split)
    stock = predict_stock(request.model, split, accelerator, request.batch_size) if request.stock else None
    perturbed = predict_perturbed(split, perturbations, predict_split)
    if not accelerator.is_main_process:
        return None
    graded = GradedSplit.of_split(predictions, split)
    write_predictions(request.output / f"predictions_{request.split}.jsonl", graded)
    for name, others in perturbed.items():
        path = request.output / "perturbed" / f"predictions_{request.split}_{name}.jsonl"
        write_predictions(path, GradedSplit.of_split(others, split))
    return Evaluation(
        _about(request, model, digest, accelerator), evaluate(predictions, model.config, graded.people), graded, split,
        measure_stock(predictions, stock, graded.people) if stock else None,
        measure_robustness(predictions, perturbed, graded.people) if perturbed else None, perturbed,
        measure_pairs(predictions, graded.people, pairs, prior) if prior else None,
    )  # fmt: skip


def _about(request: EvaluationRequest, model, digest: str, accelerator: Accelerator) -> dict[str, str]:
    return {
        "model": f"{request.model} ({model.num_parameters() / 1e6:.1f} million parameters)",
        "weights": weights_digest(request.model),
        "data": f"{request.data_dir or 'KNEE_XRAY_DIR'}, split {request.split}, digest {digest}",
        "precision": f"weights {model.dtype}, autocast {request.mixed_precision}".replace("torch.", ""),
        **({"readings": f"{request.readings}, averaged"} if request.readings > 1 else {}),
        "run on": f"{accelerator.num_processes} process(es), {accelerator.device.type}, batch {request.batch_size}",
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
    }
