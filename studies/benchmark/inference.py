"""Grading against transformers' pipelines, same weights and X-rays, and against the machine's peak."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from transformers import CLIPForImageClassification, CLIPModel, pipeline
from transformers.utils import logging

from clip_koa.grading.grader import Grader
from clip_koa.training.checkpoints import save_model_folder
from clip_koa.training.starting_points import IMAGENET_MEAN, IMAGENET_STD, build_image_processor
from clip_koa.training.tokenizer import build_prompt_tokenizer
from dataset_script.synthetic import draw_knee
from modeling_clip_koa import PROMPT_SETS, CLIPKOAForImageClassification
from studies.benchmark.measure import MODELS, build_model, count_flops, device, matrix_product, measure, ratio

ZERO_SHOT, LINEAR = "zero-shot pipeline", "classification pipeline"


def measure_inference(name: str, batch_size: int, prompts: str, rounds: int) -> dict:
    """X-rays per second from images in memory to grades, over those of the pipelines in fp32, and utilisation.

    Args:
        name: of `MODELS`; its weights are random, and the same for all.
        prompts: the first of each grade goes to the zero-shot pipeline.

    Returns:
        For each way of ours `X-rays/s over` either pipeline; `same grades` as the pipeline's (share); `of the peak`:
        floating-point operations per second over those of a matrix product of the same precision; the `model's share`
        of the time, the rest being preprocessing.
    """
    images = draw_images(name, batch_size)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        write_model(folder, name, prompts)
        theirs = pipelines(folder, images, [texts[0] for texts in PROMPT_SETS[prompts]])
        models = {kind: Grader(str(folder), precision=kind).model for kind in ("fp32", "bf16")}
        ours = _own_ways(models, images)
    same = _same_grades(theirs[ZERO_SHOT](), {way: grade() for way, grade in ours.items() if "one view" in way})
    forwards = {kind: _forward(model, images) for kind, model in models.items()}
    products = {kind: matrix_product(kind) for kind in models}
    flops = {kind: count_flops(forward) for kind, forward in forwards.items()}
    seconds = measure(
        theirs
        | ours
        | {f"forward {kind}": forward for kind, forward in forwards.items()}
        | {f"product {kind}": product for kind, (product, _) in products.items()},
        rounds,
    )
    figures = {
        f"{way} over the {pipe}": ratio(seconds[pipe], seconds[way]) for way in ours for pipe in (ZERO_SHOT, LINEAR)
    }
    figures["same grades as the zero-shot pipeline"] = same
    for kind in models:
        share = flops[kind] / products[kind][1]
        figures[f"forward {kind} of the peak"] = ratio(seconds[f"product {kind}"], seconds[f"forward {kind}"], share)
        way = seconds[f"one view, {kind}"]
        figures[f"one view, {kind}: model's share"] = ratio(seconds[f"forward {kind}"], way)
    if (compiled := "one view, bf16, compiled") in seconds:
        share = flops["bf16"] / products["bf16"][1]
        figures[f"{compiled}: of the peak, all included"] = ratio(seconds["product bf16"], seconds[compiled], share)
    return figures


def draw_images(name: str, count: int) -> list[Image.Image]:
    """X-rays of the size that a model of `MODELS` reads, in mode L."""
    size = MODELS[name]["vision_config"]["image_size"]
    return [draw_knee(number % 5, "LR"[number % 2], number, size).convert("L") for number in range(count)]


def write_model(folder: Path, name: str, prompts: str) -> None:
    """The model folder of one of `MODELS`, with random weights."""
    processor = build_image_processor(MODELS[name]["vision_config"]["image_size"], IMAGENET_MEAN, IMAGENET_STD)
    tokenizer = build_prompt_tokenizer(PROMPT_SETS[prompts], 77)
    save_model_folder(folder, build_model(name, prompts), processor, tokenizer)


def pipelines(folder: Path, images: list[Image.Image], prompts: list[str]) -> dict[str, Callable]:
    """Each gives the grades of all images, as a user of stock transformers gets them."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # stock classes name the weights that they leave aside
    parts = {"image_processor": str(folder), "device": device()}
    zero_shot = pipeline(
        "zero-shot-image-classification", model=CLIPModel.from_pretrained(folder), tokenizer=str(folder), **parts
    )
    linear = pipeline("image-classification", model=CLIPForImageClassification.from_pretrained(folder), **parts)
    logging.set_verbosity(level)
    batch_size = len(images)

    def by_text():
        scores = zero_shot(images, candidate_labels=prompts, hypothesis_template="{}", batch_size=batch_size)
        return [prompts.index(max(row, key=lambda score: score["score"])["label"]) for row in scores]

    return {ZERO_SHOT: by_text, LINEAR: lambda: linear(images, top_k=1, batch_size=batch_size)}


def _own_ways(models: dict[str, CLIPKOAForImageClassification], images: list[Image.Image]) -> dict[str, Callable]:
    ways = {}
    for kind, model in models.items():
        grade_views = model.grade_views
        ways[f"one view, {kind}, image processor"] = _one_view(model, images, grade_views, model.image_processor)
        ways[f"one view, {kind}"] = _one_view(model, images, grade_views)
        ways[f"both views, {kind}"] = lambda model=model: [grade.grade for grade in model.grade(images)]
    if torch.cuda.is_available() or shutil.which(os.environ.get("CXX", "g++")):  # it compiles C++ on a CPU
        compiled = torch.compile(models["bf16"].grade_views)
        ways["one view, bf16, compiled"] = _one_view(models["bf16"], images, compiled)
    return ways


def _one_view(model: CLIPKOAForImageClassification, images, grade_views: Callable, image_processor=None) -> Callable:
    """Grades without the mirror image; with the image processor where it is given, else the model's shorter way."""
    weight = model.visual_projection.weight

    @torch.inference_mode()
    def grade():
        if image_processor:
            pixel_values = image_processor(images, return_tensors="pt")["pixel_values"]
        else:
            pixel_values = model.beside.preprocess(images)
        return grade_views(pixel_values.to(weight.device, weight.dtype)).argmax(-1).tolist()

    return grade


def _forward(model: CLIPKOAForImageClassification, images: list[Image.Image]) -> Callable:
    weight = model.visual_projection.weight
    pixel_values = model.beside.preprocess(images).to(weight.device, weight.dtype)
    return torch.inference_mode()(lambda: model.grade_views(pixel_values))


def _same_grades(expected: list[int], found: dict[str, list[int]]) -> dict[str, float]:
    return {way: sum(map(int.__eq__, expected, grades)) / len(expected) for way, grades in found.items()}
