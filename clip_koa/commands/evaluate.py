"""`clip-koa evaluate`."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Context, Option

from clip_koa.commands.options import DataDir, Split
from clip_koa.memory import importing

Head = Literal["text", "text_flip_averaged", "linear"]
Precision = Literal["no", "bf16", "fp16"]


def evaluate(
    context: Context,
    files: Annotated[list[str] | None, Argument(metavar="PREDICTIONS", help="Of --compare, --average_seeds.")] = None,
    model: Annotated[str | None, Option(help="Model folder, such as runs/demo/best, or Hub id.")] = None,
    compare: Annotated[bool, Option("--compare", help="Compare two prediction files of the same X-rays.")] = False,
    average_seeds: Annotated[bool, Option("--average_seeds", help="Average the figures of several seeds.")] = False,
    output: Annotated[Path | None, Option(help="Folder for what is found; --model needs one.")] = None,
    data_dir: DataDir = None,
    split: Split = "validation",
    batch_size: Annotated[int, Option("--batch_size", min=1, help="X-rays at once on each process.")] = 16,
    num_workers: Annotated[int, Option("--num_workers", min=0, help="Processes that decode X-rays.")] = 0,
    mixed_precision: Annotated[Precision, Option("--mixed_precision", help="no: fp32, as train evaluates.")] = "no",
    stock: Annotated[bool, Option("--stock", help="Also grade in stock pipelines, without custom code.")] = False,
    perturb: Annotated[str, Option(metavar="NAME,...", help="Also perturb the X-rays: all, or names.")] = "",
    readings: Annotated[int, Option(help="1, or 3: also turned slightly either way, as grade.")] = 1,
    pairs: Annotated[bool, Option("--pairs", help="Also both knees of a person together, as grade --pairs.")] = False,
    no_thumbnails: Annotated[bool, Option("--no_thumbnails", help="No pictures of X-rays on the page.")] = False,
    head: Annotated[Head, Option(help="--compare: what grades the X-rays.")] = "text_flip_averaged",
    second_head: Annotated[Head | None, Option("--second_head", help="The same of the second file's.")] = None,
) -> None:
    """Evaluate a model, or compare predictions.

    With --model it writes predictions, metrics.json, pictures and one page, index.html. `accelerate launch -m clip_koa
    evaluate` spreads it over processes, as torchrun does.
    """
    with importing():
        from clip_koa.evaluation.checkpoint import EvaluationRequest, evaluate_checkpoint
        from clip_koa.evaluation.loading import split_name
        from clip_koa.evaluation.prediction_files import check_request, describe_files
        from clip_koa.reporting.evaluation_report import write_evaluation

    given = [name for name in context.params if context.get_parameter_source(name).name != "DEFAULT"]
    check_request(model, compare, average_seeds, files or [], output, given)
    if not model:
        print(describe_files(files, compare, head, second_head or head, output))
        return
    names, split = tuple(filter(None, perturb.split(","))), split_name(split)
    request = EvaluationRequest(
        model, output, data_dir, split, batch_size, num_workers, mixed_precision, stock, names, pairs, readings
    )  # fmt: skip
    evaluate_checkpoint(request, partial(write_evaluation, output, split, thumbnails=not no_thumbnails))
