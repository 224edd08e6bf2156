"""`clip-koa frame`."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from clip_koa.memory import importing
from clip_koa.released import released_model


def frame(
    films: Annotated[Path, Argument(help="Folder of films, as the OAI gives them or any other.")],
    labels: Annotated[list[Path], Option(help="Table of readings; once for each table.")],
    output: Annotated[Path, Option(help="Folder of the corpus.")],
    model: Annotated[str, Option(help="Model folder or Hub id (default: the released one).")] = "",
    columns: Annotated[
        str, Option(metavar="NAME=COLUMN,...", help="What the tables call person, side, grade ...")
    ] = "",
    project: Annotated[str, Option(help="Reading project of an OAI table.")] = "15",
    shares: Annotated[str, Option(metavar="TRAIN,VALIDATION,TEST", help="Shares of the splits.")] = "0.7,0.1,0.2",
    seed: Annotated[int, Option(min=0, help="Which of the equally good splits.")] = 0,
    persons: Annotated[Path | None, Option(help="Table with person and split, in place of --shares.")] = None,
    jobs: Annotated[int, Option(min=0, help="Processes; 0: one for each core.")] = 0,
) -> int:
    """Make a corpus of a study's films.

    The knees of each film are found, cut as training X-rays are cut, and joined with their grades by film, by barcode,
    or by person and visit. The corpus is a folder that audit, train and evaluate take, with a report of what was left
    out and why. A run that was stopped goes on where it was.
    """
    model = model or released_model()
    with importing():
        from clip_koa.framing.study import Study, default_jobs, frame_study, parse_shares

    parts = parse_shares(shares)
    return frame_study(
        Study(films, labels, output, model, columns, project, parts, seed, persons, jobs or default_jobs())
    )
