"""Evaluate a CLIP-KOA checkpoint on a split of knee X-rays, or compare or average sets of predictions.

    python evaluate_checkpoint.py --model runs/small/best --data_dir FOLDER --split validation --output evaluation
    python evaluate_checkpoint.py --model runs/small/best --data_dir FOLDER --output evaluation --stock --perturb all
    python evaluate_checkpoint.py --compare FIRST/predictions_test.jsonl SECOND/predictions_test.jsonl
    python evaluate_checkpoint.py --average_seeds SEED0/predictions_test.jsonl SEED1/predictions_test.jsonl

The first writes predictions, metrics.json, pictures and one page, index.html. It runs under torchrun and accelerate
launch too. docs/evaluation.md says what the figures mean. Research only, no medical device.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
import transformers
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from clip_koa.data.loader import XrayDataset
from clip_koa.evaluation.comparison import compare_files, describe_comparison
from clip_koa.evaluation.heads import HEADS, describe_results, evaluate, predict
from clip_koa.evaluation.loading import CheckpointError, load_checkpoint, load_split, split_name, weights_digest
from clip_koa.evaluation.perturbation import PerturbationError, check_perturbations
from clip_koa.evaluation.predictions import PredictionFile, PredictionsError, write_predictions
from clip_koa.evaluation.robustness import measure_robustness, predict_perturbed
from clip_koa.evaluation.seeds import average_files, describe_average
from clip_koa.evaluation.stock import StockError, measure_stock, predict_stock
from clip_koa.files import WriteError, write_file
from clip_koa.locks import InUseError, WriterLock
from clip_koa.reporting.evaluation_report import write_evaluation
from clip_koa.training.recording import only_writer
from dataset_script.knee_xray import CorpusError
from dataset_script.radiograph import RadiographError


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits with a message where it is wrong."""
    parser = argparse.ArgumentParser(description="Evaluate a CLIP-KOA checkpoint, or compare sets of predictions.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", help="model folder, such as runs/demo/best, or Hub id")
    what.add_argument("--compare", nargs=2, metavar="PREDICTIONS", help="two prediction files of the same X-rays")
    what.add_argument(
        "--average_seeds", nargs="+", metavar="PREDICTIONS", help="prediction files of runs that differ in their seed"
    )
    parser.add_argument("--data_dir", help="folder of knee X-rays (default: the environment's KNEE_XRAY_DIR)")
    parser.add_argument(
        "--split", default="validation", type=split_name,
        help="validation, test, auto_test or train (default: validation)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="folder for what is found; --model needs one")
    parser.add_argument("--batch_size", type=int, default=16, help="X-rays at once on each process (default: 16)")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that decode X-rays (default: 0)")
    parser.add_argument(
        "--mixed_precision", default="no", choices=("no", "bf16", "fp16"),
        help="default: no, fp32, in which train.py evaluates its best checkpoint too",
    )  # fmt: skip
    parser.add_argument("--stock", action="store_true", help="also grade in stock pipelines, without custom code")
    parser.add_argument(
        "--perturb", nargs="+", default=[], metavar="NAME", help="also perturb the X-rays: all, or names"
    )
    parser.add_argument("--no_thumbnails", action="store_true", help="no pictures of X-rays on the page")
    parser.add_argument(
        "--head", default="text_flip_averaged", choices=HEADS, help="--compare: what grades the X-rays"
    )
    parser.add_argument(
        "--second_head", choices=HEADS, help="--compare: what grades the second file's (default: --head)"
    )
    options = parser.parse_args(arguments)
    if options.model and not options.output:
        parser.error("--model needs --output, a folder for what is found.")
    if options.average_seeds and len(options.average_seeds) < 2:
        parser.error("--average_seeds needs two prediction files or more, one of each seed.")
    if options.batch_size < 1 or options.num_workers < 0:
        parser.error("--batch_size must be at least 1, and --num_workers at least 0.")
    return options


def evaluate_model(options: argparse.Namespace, accelerator: Accelerator) -> None:
    """Grades the split, plain, in stock pipelines and perturbed as asked, and writes the report."""
    perturbations = check_perturbations(options.perturb)
    split, digest = load_split(options.data_dir, options.split, accelerator)
    model, image_processor = load_checkpoint(options.model)
    model = model.to(accelerator.device)

    def predict_split(xrays, title):
        dataset = XrayDataset(xrays, image_processor)
        batches = accelerator.prepare(DataLoader(dataset, options.batch_size, num_workers=options.num_workers))
        bar = tqdm(batches, desc=title, unit="batch", disable=not accelerator.is_local_main_process)
        predictions = predict(model, bar, accelerator)
        accelerator.free_memory()  # or it would hold every perturbed split to the end
        return predictions

    predictions = predict_split(split, options.split)
    stock = predict_stock(options.model, split, accelerator, options.batch_size) if options.stock else None
    perturbed = predict_perturbed(split, perturbations, predict_split)
    if accelerator.is_main_process:
        graded = PredictionFile.of_split(predictions, split)
        write_predictions(options.output / f"predictions_{options.split}.jsonl", graded)
        for name, others in perturbed.items():
            path = options.output / "perturbed" / f"predictions_{options.split}_{name}.jsonl"
            write_predictions(path, PredictionFile.of_split(others, split))
        results = evaluate(predictions, model.config, graded.people)
        page = write_evaluation(
            options.output, options.split, _about(options, model, digest, accelerator), results, graded,
            xrays=None if options.no_thumbnails else split,
            stock=measure_stock(predictions, stock, graded.people) if stock else None,
            robustness=measure_robustness(predictions, perturbed, graded.people) if perturbed else None,
            perturbed=perturbed,
        )  # fmt: skip
        print(describe_results(results), f"\nReport: {page}")


def _about(options: argparse.Namespace, model, digest: str, accelerator: Accelerator) -> dict[str, str]:
    """What was evaluated and how, so that the figures can be had again."""
    return {
        "model": f"{options.model} ({model.num_parameters() / 1e6:.1f} million parameters)",
        "weights": weights_digest(options.model),
        "data": f"{options.data_dir or 'KNEE_XRAY_DIR'}, split {options.split}, digest {digest}",
        "precision": f"weights {model.dtype}, autocast {options.mixed_precision}".replace("torch.", ""),
        "run on": f"{accelerator.num_processes} process(es), {accelerator.device.type}, batch {options.batch_size}",
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
    }


def main(arguments: list[str] | None = None) -> int:
    """Evaluates, compares or averages; returns the exit status."""
    options = parse_options(arguments)
    if options.model:
        accelerator = Accelerator(mixed_precision=options.mixed_precision)
        with only_writer(accelerator, WriterLock(options.output, inside=True)):
            evaluate_model(options, accelerator)
        # The last collective must carry no tensor: gloo frees its tensors in a thread of its own that needs Python's
        # lock, which ending the process group may hold while it waits for that thread.
        accelerator.wait_for_everyone()
        accelerator.end_training()
        return 0
    if options.compare:
        name, found = "comparison.json", compare_files(*options.compare, options.head, options.second_head)
        print(describe_comparison(found))
    else:
        name, found = "seeds.json", average_files(options.average_seeds)
        print(describe_average(found))
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        write_file(options.output / name, json.dumps(found, indent=2).encode())
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InUseError as error:
        print(f"evaluate_checkpoint.py: {error}", file=sys.stderr)
        sys.exit(2)
    except (
        CheckpointError, CorpusError, PerturbationError, PredictionsError, RadiographError, StockError,
        WriteError, FloatingPointError,
    ) as error:  # fmt: skip
        sys.exit(f"evaluate_checkpoint.py: {error}")
