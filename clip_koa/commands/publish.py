"""`clip-koa publish`."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from clip_koa.memory import importing

Dtype = Literal["float32", "float16", "bfloat16"]


def publish(
    subject: Annotated[str, Argument(metavar="MODEL", help="Model folder; with --space a published model.")],
    repo_id: Annotated[str, Argument(metavar="USER/NAME", help="Repository on the Hub, made where it is new.")],
    space: Annotated[bool, Option("--space", help="Publish the page, on the published model MODEL.")] = False,
    browser_space: Annotated[bool, Option("--browser-space", help="Publish MODEL as a page for the browser.")] = False,
    dataset: Annotated[bool, Option("--dataset", help="Publish the corpus's card and builder, no X-rays.")] = False,
    metric: Annotated[bool, Option("--metric", help="Publish the metric.")] = False,
    benchmark: Annotated[Path | None, Option(help="Publish X-rays MODEL as a benchmark; folder of entries.")] = None,
    onnx: Annotated[bool, Option("--onnx", help="Also ONNX graphs in fp32, fp16 and int8.")] = False,
    dry_run: Annotated[bool, Option("--dry_run", help="Build and check only; upload nothing.")] = False,
    output: Annotated[Path | None, Option(help="New folder for the release (default: a temporary one).")] = None,
    run: Annotated[list[Path] | None, Option(help="Run folder, for the card; again for each of several.")] = None,
    evaluation: Annotated[list[Path] | None, Option(help="Folder of clip-koa evaluate.")] = None,
    dtype: Annotated[Dtype | None, Option(help="Of the stored weights.")] = None,
    base_model: Annotated[str | None, Option("--base_model", help="Hub id that training started from.")] = None,
    trained_on: Annotated[str | None, Option("--trained_on", help="Hub id of the dataset, for the card.")] = None,
    python: Annotated[list[str] | None, Option(help="Another environment's python to load it with.")] = None,
    private: Annotated[bool, Option("--private", help="A new repository is private.")] = False,
    tag: Annotated[str | None, Option(help="Name of the release, as v1.")] = None,
    message: Annotated[str, Option(help="Of the commit.")] = "Release of CLIP-KOA",
) -> None:
    """Publish a model on the Hugging Face Hub.

    Its release is built, checked and uploaded in one commit. The token comes from `hf auth login` or HF_TOKEN. --run
    names the run folders of the weights where they are not around MODEL: of runs that went on from each other, and of
    those that were averaged.
    """
    with importing():
        from clip_koa.publishing import publish as room

    asked = {
        "space": space, "browser-space": browser_space, "dataset": dataset, "metric": metric, "benchmark": benchmark,
    }  # fmt: skip
    kinds = [kind for kind, wanted in asked.items() if wanted]
    publication = room.Publication(
        subject, repo_id, "+".join(kinds) or "model", dry_run, output, tuple(run or ()), tuple(evaluation or ()),
        dtype, base_model, trained_on, tuple(python or ()), private, tag, message, onnx, benchmark,
    )  # fmt: skip
    room.publish(publication)


def hide(text: str) -> str:
    """A message without the tokens of this session."""
    from clip_koa.publishing.forms import redact
    from clip_koa.publishing.private import tokens

    return redact(text, tokens())
