"""Publish a checkpoint: build its release folder, check it, show it, upload it in one commit and tag it.

    python push_to_hub.py runs/small/best USER/NAME --dry_run --output release
    python push_to_hub.py runs/small/best USER/NAME --tag v1
    python push_to_hub.py USER/NAME USER/SPACE --space
    python push_to_hub.py dataset_script USER/NAME --dataset
    python push_to_hub.py metrics/kl_grading USER/NAME --metric

The token comes from `hf auth login` or HF_TOKEN. docs/publishing.md tells more. Research only, no medical device.
"""

import argparse
import signal
import sys
import traceback
from pathlib import Path

from huggingface_hub.utils import HFValidationError, validate_repo_id

from clip_koa.publishing.beside import (
    DATASET_FILES,
    METRIC_FILES,
    PROJECT,
    SPACE_FILES,
    build_dataset,
    build_metric,
    build_space,
)
from clip_koa.publishing.errors import ReleaseError
from clip_koa.publishing.forms import find_form, redact
from clip_koa.publishing.hub import HubError, upload, validate_online
from clip_koa.publishing.private import tokens, traces
from clip_koa.publishing.release import DTYPES, Release, build_release
from clip_koa.publishing.release_check import MODEL_FILES, check_folder, check_loading
from clip_koa.publishing.workplace import Stopped, Workplace, signals_as_exceptions


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits with a message where it is wrong."""
    parser = argparse.ArgumentParser(description="Publish a CLIP-KOA checkpoint on the Hugging Face Hub.")
    parser.add_argument(
        "subject", metavar="CHECKPOINT", help="model folder, such as runs/demo/best; with --space a published model"
    )
    parser.add_argument("repo_id", metavar="USER/NAME", help="repository on the Hub, made where it is new")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--space", action="store_true", help="publish the page, on the published model CHECKPOINT")
    kinds.add_argument("--dataset", action="store_true", help="publish the corpus's card and builder, without X-rays")
    kinds.add_argument("--metric", action="store_true", help="publish the metric")
    parser.add_argument("--dry_run", action="store_true", help="build and check only; upload nothing")
    parser.add_argument("--output", type=Path, help="new folder for the release (default: a temporary one)")
    parser.add_argument(
        "--run", type=Path, action="append", default=[],
        help="run folder, for the card; again for each run that went on from it, and for each of several whose "
        "weights were averaged (default: the one around CHECKPOINT)",
    )  # fmt: skip
    parser.add_argument(
        "--evaluation", type=Path, action="append", default=[], help="folder of evaluate_checkpoint.py"
    )
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="of the stored weights (default: the checkpoint's)")
    parser.add_argument("--base_model", help="Hub id that training started from, for the card")
    parser.add_argument("--trained_on", help="Hub id of the dataset, for the card")
    parser.add_argument("--python", action="append", default=[], help="another environment's python to load it with")
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    parser.add_argument("--tag", help="name of the release, as v1")
    parser.add_argument("--message", default="Release of CLIP-KOA", help="of the commit")
    options = parser.parse_args(arguments)
    for name in (options.repo_id, *([options.subject] if options.space else ())):
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            parser.error(redact(str(error), tokens()))
        if "/" not in name:
            parser.error(redact(f"{name}: name the repository as USER/NAME.", tokens()))
    for kind, folder in (("dataset", "dataset_script"), ("metric", "metrics/kl_grading")):
        if getattr(options, kind) and Path(options.subject).resolve() != PROJECT / folder:
            parser.error(f"--{kind} publishes {folder}: give that in place of {options.subject}.")
    if options.dry_run and not options.output:
        parser.error("--dry_run needs --output, a new folder to look at.")
    return options


ALLOWED = {"model": MODEL_FILES, "space": SPACE_FILES, "dataset": DATASET_FILES, "metric": METRIC_FILES}


def repo_kind(options: argparse.Namespace) -> str:
    """What is published: model, space, dataset or metric."""
    return next((kind for kind in ("space", "dataset", "metric") if getattr(options, kind)), "model")


def repo_type(options: argparse.Namespace) -> str:
    """The Hub's type of repository for it; a metric is a Space of its own."""
    return {"metric": "space"}.get(repo_kind(options), repo_kind(options))


def private_of(options: argparse.Namespace, folder: Path) -> dict[str, str]:
    """What no file may hold, and what it is: tokens, and what names this machine and its folders."""
    subject = (Path(options.subject),) if repo_kind(options) == "model" else ()
    public = " ".join(map(str, (options.repo_id, options.base_model, options.trained_on)))
    return {**tokens(), **traces(folder, *subject, public=public)}


def build(options: argparse.Namespace, folder: Path) -> Release | None:
    """Builds the folder; returns the release where it is a model's."""
    if options.space:
        build_space(folder, options.repo_id, options.subject)
    elif options.dataset:
        build_dataset(folder)
    elif options.metric:
        build_metric(folder)
    else:
        return build_release(
            Path(options.subject), folder, options.repo_id, dtype=options.dtype, evaluations=tuple(options.evaluation),
            base_model=options.base_model, runs=tuple(options.run), trained_on=options.trained_on,
        )  # fmt: skip
    return None


def publish(options: argparse.Namespace, place: Workplace) -> None:
    """Builds, checks, shows and uploads."""
    for name in ("message", "tag"):
        if found := find_form(getattr(options, name) or ""):
            raise ReleaseError(f"--{name} holds {found}.")
    release = build(options, place.release)
    files = check_folder(place.release, ALLOWED[repo_kind(options)], private_of(options, place.folder))
    if release:
        for python in (sys.executable, *options.python):
            for way, difference in check_loading(place.release, release.expected, python).items():
                print(f"loads with {way}: largest difference {difference:.1g}")
    folder = place.keep(place.release)
    for file in files:
        print(f"{file.size:>12,}  {file.name}")
    print(f"{sum(file.size for file in files):>12,}  bytes in {len(files)} files for {options.repo_id}")
    if options.dry_run:
        print(f"Nothing was uploaded; the release is in {options.output}.")
        return
    validate_online(folder, repo_type(options))
    sdk = {"space": "gradio", "metric": "static"}.get(repo_kind(options))
    print(f"Uploading to {options.repo_id}", flush=True)
    oid = upload(
        folder, files, options.repo_id, repo_type=repo_type(options), private=options.private, tag=options.tag,
        message=options.message, space_sdk=sdk,
    )  # fmt: skip
    print(f"Published as {options.repo_id} at revision {oid}" + (f", tag {options.tag}." if options.tag else "."))


def main(arguments: list[str] | None = None) -> int:
    """Publishes; returns the exit status: 2 where it can't, 128 and its number after a signal."""
    options = parse_options(arguments)
    try:
        with signals_as_exceptions(), Workplace(options.output) as place:
            publish(options, place)
        return 0
    except Stopped as stop:
        name = signal.Signals(stop.args[0]).name
        _tell(f"stopped by {name}. What was not yet published is not; push again to publish it.")
        return 128 + stop.args[0]
    except (HubError, OSError, ReleaseError) as error:
        _tell(str(error))
        return 2
    except Exception:  # a fault of ours: told in full, but for what nobody may read
        _tell(traceback.format_exc())
        return 1


def _tell(text: str) -> None:
    print(f"push_to_hub.py: {redact(text, tokens())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
