"""What prediction files say together: two compared, or several seeds averaged."""

import json
from pathlib import Path

from clip_koa.evaluation.comparison import compare_files, describe_comparison
from clip_koa.evaluation.predictions import PredictionsError
from clip_koa.evaluation.seeds import average_files, describe_average
from clip_koa.files import write_file

# What each of --model, --compare and --average_seeds reads, and what --compare alone does; the other options are for
# --model alone.
_SHARED = {"files", "model", "compare", "average_seeds", "output"}
_OF_COMPARE = {"head", "second_head"}


def check_request(
    model: str | None, compare: bool, average_seeds: bool, files: list[str], output: Path | None, given: list[str]
) -> None:
    """Refuses what cannot be evaluated together.

    Args:
        given: names of the options on the command line.

    Raises:
        PredictionsError: not one of a model, a comparison and an average, another number of files than it takes, or an
            option that it would not read.
    """
    if bool(model) + compare + average_seeds != 1:
        raise PredictionsError("name one of --model, --compare and --average_seeds.")
    if model and files:
        raise PredictionsError(f"{files[0]}: prediction files are for --compare and --average_seeds, not for --model.")
    if model and not output:
        raise PredictionsError("--model needs --output, a folder for what is found.")
    if compare and len(files) != 2:
        raise PredictionsError(f"--compare needs two prediction files, not {len(files)}.")
    if average_seeds and len(files) < 2:
        raise PredictionsError("--average_seeds needs two prediction files or more, one of each seed.")
    for name in given:
        reader = "compare" if name in _OF_COMPARE else "model"
        if name not in _SHARED and not {"compare": compare, "model": model}[reader]:
            raise PredictionsError(f"--{name} is for --{reader} alone: leave it out.")


def describe_files(files: list[str], compare: bool, head: str, second_head: str, output: Path | None) -> str:
    """Compares two files or averages several, and writes the figures into `output`, where it is given.

    Args:
        compare: otherwise they are averaged.
        head, second_head: what grades the X-rays of the first and of the second file, compared.

    Returns:
        The figures as lines to print.

    Raises:
        PredictionsError: as `compare_files`.
        WriteError: the figures cannot be written.
    """
    if compare:
        name, found = "comparison.json", compare_files(*files, head, second_head)
        text = describe_comparison(found)
    else:
        name, found = "seeds.json", average_files(files)
        text = describe_average(found)
    if output:
        output.mkdir(parents=True, exist_ok=True)
        write_file(output / name, json.dumps(found, indent=2).encode())
    return text
