"""Measure what CLIP-KOA costs, as ratios taken in one run.

    python -m studies.benchmark views training loader memory --output benchmark.json
    python -m studies.benchmark inference --batch_size 32 --prompts standard

Sections:
  views      inference on both views over one view; the text tower's share of a training step
  inference  X-rays per second, from images in memory to grades, over transformers' pipelines with the same weights;
             floating-point operations over the machine's matrix-product peak
  backends   X-rays per second of both views by PyTorch, OpenVINO and ONNX Runtime in each precision, from images in
             memory to grades, over transformers' image-classification pipeline with the same weights
  start      seconds from the start of clip-koa grade to the grade of one X-ray, by backend, with the released model
  training   views per second over transformers' image-classification example and over a naive CLIP-KOA step;
             floating-point operations over the machine's matrix-product peak
  batches    views per second over the naive step for batches of 4 to 64
  ways       a training step on a CPU in fp32, by torch.compile, and by a process for each core, over ours in bf16
  profile    what a training step spends its time on
  loader     X-rays per second of the loader over those of a training step; memory of the loader as the corpus grows
  memory     peak memory of a training step under each lever
  growth     X-rays per second and memory of clip-koa grade for archives of 1,000 to 100,000 X-rays, with a tiny model;
             with the released model in fp32 and int8 over its network alone, for up to 10,000
  cluster    X-rays per second of clip-koa grade --ray local on two cores over two separate runs; memory of its driver
  busy       grading and a training step beside processes that use every core, for each way that threads wait
Weights are random, which costs the same. docs/performance.md holds the figures.
"""

import argparse
import json
import sys
from pathlib import Path

from clip_koa.files import write_file
from clip_koa.memory import keep_freed_memory
from dataset_script.exit_status import main_of
from dataset_script.knee_xray import KneeXray
from modeling_clip_koa import PROMPT_SETS
from studies.benchmark.backends import measure_backends
from studies.benchmark.busy import measure_busy
from studies.benchmark.cluster import measure_ceilings, measure_cluster, measure_driver
from studies.benchmark.growth import measure_archive, measure_growth
from studies.benchmark.inference import measure_inference
from studies.benchmark.loading import measure_loader
from studies.benchmark.measure import MODELS, device
from studies.benchmark.memory import measure_levers, measure_loader_growth
from studies.benchmark.start import measure_start
from studies.benchmark.training import measure_batches, measure_training, measure_views, measure_ways, profile_training

SECTIONS = (
    "views", "inference", "backends", "start", "training", "batches", "ways", "profile", "loader", "memory",
    "growth", "cluster", "busy",
)  # fmt: skip


def run_section(section: str, options: argparse.Namespace) -> dict:
    """The figures of a section: ratios with median, min and max, or MiB."""
    common = (options.model, options.batch_size, options.precision, options.prompts, options.rounds)
    if section == "views":
        return measure_views(*common)
    if section == "inference":
        return measure_inference(options.model, options.batch_size, options.prompts, options.rounds)
    if section == "backends":
        return measure_backends(options.model, options.batch_size, options.prompts, options.rounds)
    if section == "start":
        return measure_start(options.rounds)
    if section == "training":
        return measure_training(*common)
    if section == "batches":
        return measure_batches(options.model, options.precision, options.prompts, options.rounds)
    if section == "ways":
        return measure_ways(options.model, options.batch_size, options.prompts, options.rounds)
    if section == "profile":
        return profile_training(*common)
    if section == "growth":
        return measure_growth(options.archives) | measure_archive(options.archives)
    if section == "cluster":
        measured = measure_cluster(options.model, options.batch_size * 10, options.rounds)
        return {**measured, **measure_ceilings(), **measure_driver(options.archives)}
    if section == "busy":
        return measure_busy(options.model, options.batch_size, options.rounds)
    if section == "memory":
        return {"MiB at the peak of a step": measure_levers(options.model, options.batch_size)}
    builder = KneeXray("synthetic", people=400, image_size=224)
    builder.download_and_prepare()
    split = builder.as_dataset("train")
    figures = measure_loader(split, options.model, options.precision, options.prompts, options.rounds)
    return {**figures, "MiB at the peak of the loader": measure_loader_growth()}


def run(arguments: list[str] | None, prog: str) -> int:
    """Prints the figures of the sections asked for; returns the exit status."""
    parser = argparse.ArgumentParser(prog=prog, description="Measure what CLIP-KOA costs, as ratios taken in one run.")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)} (default: views)")
    parser.add_argument("--model", choices=tuple(MODELS), default="vit_b_16")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds after one warm-up (default: 5)")
    parser.add_argument("--prompts", choices=tuple(PROMPT_SETS), default="ensemble")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--system_allocator", action="store_true", help="leave the C library's allocator as it is")
    parser.add_argument(
        "--archives", type=int, nargs="+", default=(1000, 10_000, 100_000), metavar="X-RAYS",
        help="sizes for growth (default: 1000 10000 100000)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args(arguments)
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"unknown section {sorted(unknown)[0]!r}: use {', '.join(SECTIONS)}")
    if not options.system_allocator:
        keep_freed_memory()

    figures = {}
    print(f"{options.model}, batch {options.batch_size}, {options.precision}, {device()}, prompts {options.prompts}")
    for section in options.sections or ("views",):
        figures[section] = run_section(section, options)
        for name, values in figures[section].items():
            print(f"{name:52}" + "".join(f"  {key} {_shown(value)}" for key, value in values.items()), flush=True)
    if options.output:
        settings = {**vars(options), "output": str(options.output)}
        write_file(options.output, json.dumps({"options": settings, **figures}, indent=2).encode())
    return 0


def _shown(value: float) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


main = main_of("studies.benchmark", run)


if __name__ == "__main__":
    sys.exit(main())
