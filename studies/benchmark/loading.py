"""Whether the loader keeps up with the model."""

import time

from datasets import Dataset

from clip_koa.data.loader import XrayDataset, build_loader
from clip_koa.training.optimisation import freeze_lower_blocks
from clip_koa.training.starting_points import IMAGENET_MEAN, IMAGENET_STD, build_image_processor
from studies.benchmark.measure import build_model, device, measure
from studies.benchmark.training import clip_koa_step

BATCH_SIZE = 32


def measure_loader(split: Dataset, name: str, precision: str, prompts: str, rounds: int) -> dict:
    """X-rays per second of the loader alone, over those that a training step takes.

    Args:
        split: of the `KneeXray` builder.
    """
    model = build_model(name, prompts).to(device()).train()
    frozen = model.vision_model.config.num_hidden_layers * 2 // 3 if name == "small" else 0
    freeze_lower_blocks(model, frozen)  # as configs/small.yaml has it
    seconds = measure({"step": clip_koa_step(model, BATCH_SIZE, precision)}, rounds)["step"]
    processor = build_image_processor(model.config.vision_config.image_size, IMAGENET_MEAN, IMAGENET_STD)
    loader = build_loader(XrayDataset(split, processor), BATCH_SIZE, num_workers=0)
    rates = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        count = sum(len(batch["labels"]) for batch in loader)
        rates.append(count / (time.perf_counter() - started))
    ratios = [rate * second / BATCH_SIZE for rate, second in zip(rates[1:], seconds, strict=True)]
    return {"loader / step": {"median": sorted(ratios)[len(ratios) // 2], "min": min(ratios), "max": max(ratios)}}
