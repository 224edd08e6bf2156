"""Peak memory: of a training step under each lever, and of the loader as the corpus grows.

Each figure comes from a process of its own: `python -m studies.benchmark.memory step bf16 vit_b_16 16`.
"""

import json
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import datasets
import torch

from clip_koa.data.loader import XrayDataset, build_loader
from clip_koa.training.lora import add_lora
from clip_koa.training.optimisation import freeze_lower_blocks
from clip_koa.training.starting_points import IMAGENET_MEAN, IMAGENET_STD, build_image_processor
from dataset_script.synthetic import draw_knee
from studies.benchmark.measure import build_model, device
from studies.benchmark.training import clip_koa_step

_MIB = 1 << 20
# Precision, parts that the batch is computed in, and what is done to the model.
LEVERS = {
    "none": ("fp32", 1, None),
    "bf16": ("bf16", 1, None),
    "accumulation in 4 parts": ("fp32", 4, None),
    "gradient checkpointing": ("fp32", 1, lambda model: model.gradient_checkpointing_enable({"use_reentrant": False})),
    "lower 8 blocks frozen": ("fp32", 1, lambda model: freeze_lower_blocks(model, 8)),
    "LoRA of rank 16": ("fp32", 1, lambda model: add_lora(model, 16)),
    "all but LoRA": (
        "bf16",
        4,
        lambda model: (LEVERS["gradient checkpointing"][2](model), freeze_lower_blocks(model, 8)),
    ),
}
GROWTH = (1, 10, 50)
_DRAWN = 200  # X-rays of the corpus that is then repeated


def measure_levers(name: str, batch_size: int) -> dict[str, int]:
    """MiB that a training step (model, gradients, AdamW and activations) takes at its peak, for each lever."""
    return {lever: _in_own_process("step", lever, name, str(batch_size)) for lever in LEVERS}


def measure_loader_growth() -> dict[str, int]:
    """MiB of own memory at the loader's peak, over a whole epoch of a generated corpus repeated 1, 10 and 50 times."""
    with tempfile.TemporaryDirectory() as folder:
        _write_corpora(Path(folder))
        return {f"{times * _DRAWN} X-rays": _in_own_process("loader", f"{folder}/{times}") for times in GROWTH}


def _in_own_process(*arguments: str) -> int:
    command = [sys.executable, "-m", "studies.benchmark.memory", *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _write_corpora(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as drawn:
        for index in range(_DRAWN):
            draw_knee(index % 5, "LR"[index % 2], index).save(Path(drawn) / f"{index}.png")
        rows = [
            {"image": {"bytes": (Path(drawn) / f"{index}.png").read_bytes(), "path": None}, "label": index % 5}
            for index in range(_DRAWN)
        ]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    for times in GROWTH:
        with datasets.arrow_writer.ArrowWriter(path=str(folder / f"{times}"), features=features) as writer:
            for number in range(times * _DRAWN):
                writer.write(features.encode_example(rows[number % _DRAWN]))
            writer.finalize()


def _step_memory(lever: str, name: str, batch_size: int) -> int:
    precision, parts, change = LEVERS[lever]
    torch.manual_seed(0)
    model = build_model(name, "ensemble").to(device()).train()
    if change:
        change(model)
    step = clip_koa_step(model, batch_size // parts, precision)
    for _ in range(2):  # AdamW's state comes with the first
        step()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() // _MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _loader_memory(path: str) -> int:
    """Peak of the anonymous memory, in MiB: pages of the Arrow file, which the system can drop, are not counted."""
    split = datasets.Dataset.from_file(path)
    processor = build_image_processor(224, IMAGENET_MEAN, IMAGENET_STD)
    peak = 0
    for number, _ in enumerate(build_loader(XrayDataset(split, processor), 32, num_workers=0)):
        if number % 5 == 0:
            status = Path("/proc/self/status").read_text(encoding="ascii")
            peak = max(peak, int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]))
    return peak // 1024


if __name__ == "__main__":
    kind, *rest = sys.argv[1:]
    print(_step_memory(rest[0], rest[1], int(rest[2])) if kind == "step" else _loader_memory(rest[0]))
