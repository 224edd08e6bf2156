"""Whether heat maps show what the grade leans on: two tests from the literature, on X-rays of a corpus.

    python -m studies.heatmap_check --model runs/demo/best --data_dir FOLDER --split validation --limit 100

Randomisation (Adebayo et al. 2018, arXiv 1810.03292): a map that stays as it is when the weights are drawn anew
shows the X-ray, not the model. Deletion (Petsiuk et al. 2018, arXiv 1806.07421): painting over the hottest patches
must lower the grade's probability by more than painting over as many others.
"""

import argparse
import copy
import json
import sys

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Image
from scipy.stats import spearmanr
from tqdm.auto import tqdm

from clip_koa.evaluation.loading import load_checkpoint, load_split, split_name
from clip_koa.evaluation.predictions import pseudonyms
from dataset_script.exit_status import main_of
from dataset_script.radiograph import read_stored_image
from metrics.kl_grading.kl_grading import person_numbers
from modeling_clip_koa import CLIPKOAForImageClassification, XrayPreprocessor
from modeling_clip_koa.explanation_clip_koa import patch_relevance

SHARES = (0.1, 0.2, 0.3)  # of the patches, painted over
_RESAMPLES = 2000


def compare_randomised(model: CLIPKOAForImageClassification, pixel_values: torch.Tensor, grades: list[int]) -> dict:
    """Spearman's rank correlation of each X-ray's map with its map under weights drawn anew.

    Returns:
        For the last block alone, and for the whole vision tower: (N,) correlations.
    """
    maps = _maps(model, pixel_values, grades)
    found = {}
    for name, part in (
        ("last block", lambda tower: tower.encoder.layers[-1]),
        ("whole tower", lambda tower: tower),
    ):
        other = copy.deepcopy(model)
        _draw_anew(part(other.vision_model), torch.Generator().manual_seed(0))
        pairs = zip(maps, _maps(other, pixel_values, grades), strict=True)
        found[name] = [float(spearmanr(one.flatten(), two.flatten()).statistic) for one, two in pairs]
    return found


def _draw_anew(part: torch.nn.Module, generator: torch.Generator) -> None:
    """Every parameter's values in another order: the same statistics, nothing that was learned."""
    for parameter in part.parameters():
        order = torch.randperm(parameter.numel(), generator=generator)
        parameter.data = parameter.data.flatten()[order].view_as(parameter)


def compare_deletions(model: CLIPKOAForImageClassification, pixel_values: torch.Tensor, grades: list[int]) -> dict:
    """How much the grade's probability falls, both views averaged, when patches take the X-ray's mean.

    Returns:
        For each share of the patches: (N,) falls for the hottest, for as many at random, and for the hottest of the
        next X-ray's map, which lie where joints do but are not this X-ray's.
    """
    maps = _maps(model, pixel_values, grades).flatten(1)
    before = _probabilities(model, pixel_values, grades)
    rankings = {
        "hottest": maps.argsort(dim=1, descending=True),
        "random": torch.rand(maps.shape, generator=torch.Generator().manual_seed(0)).argsort(dim=1),
        "another's": maps.roll(1, dims=0).argsort(dim=1, descending=True),
    }
    return {
        share: {
            name: before - _probabilities(model, _painted(pixel_values, ranking, share), grades)
            for name, ranking in rankings.items()
        }
        for share in SHARES
    }


def _maps(model, pixel_values, grades) -> torch.Tensor:
    return torch.cat(
        [patch_relevance(model, one[None], grade) for one, grade in zip(pixel_values, grades, strict=True)]
    )


@torch.no_grad()
def _probabilities(model, pixel_values, grades) -> np.ndarray:
    shares = model(pixel_values, flip_average=True).logits.softmax(-1)
    return shares[torch.arange(len(grades)), torch.tensor(grades)].numpy()


def _painted(pixel_values: torch.Tensor, ranking: torch.Tensor, share: float) -> torch.Tensor:
    """X-rays (N, 3, H, W) with the first `share` of the ranked patches (N, patches) at the X-ray's mean."""
    count = round(share * ranking.shape[1])
    side = round(ranking.shape[1] ** 0.5)
    mask = torch.zeros(ranking.shape).scatter(1, ranking[:, :count], 1.0).view(-1, 1, side, side)
    mask = torch.nn.functional.interpolate(mask, size=pixel_values.shape[-2:], mode="nearest")
    return pixel_values * (1 - mask) + pixel_values.mean((2, 3), keepdim=True) * mask


def _summary(values, people: list[str]) -> dict:
    """Mean and 95 % interval, by bootstrap over people."""
    values = np.asarray(values, dtype=float)
    member = person_numbers(people)
    sums, counts = np.bincount(member, values), np.bincount(member)
    drawn = np.random.default_rng(0).integers(0, len(sums), (_RESAMPLES, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    return {"mean": float(values.mean()), "interval": np.percentile(means, [2.5, 97.5]).tolist()}


def check(model, image_processor, split, limit: int) -> dict:
    """Both tests on up to `limit` X-rays, evenly out of the split; every figure with its interval over people."""
    model.requires_grad_(False)
    indices = np.unique(np.linspace(0, len(split) - 1, min(limit, len(split))).round().astype(int))
    collected, preprocess = {}, XrayPreprocessor(image_processor)
    split = split.cast_column("image", Image(decode=False))
    everyone = pseudonyms(list(split["file"]), list(split["person_id"]))
    people = [everyone[index] for index in indices]
    for start in tqdm(range(0, len(indices), 20), desc="checking", unit="batch"):
        images = [read_stored_image(split[int(index)]["image"]) for index in indices[start : start + 20]]
        pixel_values = preprocess(images)
        with torch.no_grad():
            grades = model(pixel_values, flip_average=True).logits.argmax(-1).tolist()
        for name, values in compare_randomised(model, pixel_values, grades).items():
            collected.setdefault(("randomised", name), []).extend(values)
        for share, falls in compare_deletions(model, pixel_values, grades).items():
            for name, values in falls.items():
                collected.setdefault((f"{share:.0%} painted over", name), []).extend(values)
            for other in ("random", "another's"):
                collected.setdefault((f"{share:.0%} painted over", f"hottest less {other}"), []).extend(
                    falls["hottest"] - falls[other]
                )
    return {f"{test}: {name}": _summary(values, people) for (test, name), values in collected.items()}


def run(arguments: list[str] | None, prog: str) -> int:
    """Prints the figures as JSON; returns the exit status."""
    parser = argparse.ArgumentParser(prog=prog, description="Whether heat maps show what the grade leans on.")
    parser.add_argument("--model", required=True, help="model folder or Hub id")
    parser.add_argument("--data_dir", help="the corpus (default: $KNEE_XRAY_DIR)")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--limit", type=int, default=100, help="X-rays at most (default: 100)")
    options = parser.parse_args(arguments)
    model, image_processor = load_checkpoint(options.model)
    split, _ = load_split(options.data_dir, split_name(options.split), Accelerator(cpu=True))
    figures = check(model, image_processor, split, options.limit)
    print(json.dumps(figures, indent=1))
    return 0


main = main_of("studies.heatmap_check", run)


if __name__ == "__main__":
    sys.exit(main())
