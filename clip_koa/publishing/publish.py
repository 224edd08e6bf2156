"""Publishes: builds a release, checks it, shows it, uploads it in one commit and tags it."""

import sys
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.utils import HFValidationError, validate_repo_id

from clip_koa.publishing.benchmark import BENCHMARK_FILES, build_benchmark
from clip_koa.publishing.beside import (
    DATASET_FILES,
    METRIC_FILES,
    PROJECT,
    SPACE_FILES,
    build_dataset,
    build_metric,
    build_space,
)
from clip_koa.publishing.browser_space import BROWSER_SPACE_FILES, build_browser_space
from clip_koa.publishing.errors import ReleaseError
from clip_koa.publishing.forms import find_form
from clip_koa.publishing.hub import upload, validate_online
from clip_koa.publishing.private import tokens, traces
from clip_koa.publishing.release import Release, build_release
from clip_koa.publishing.release_check import MODEL_FILES, check_folder, check_loading
from clip_koa.publishing.workplace import Workplace

ALLOWED = {
    "model": MODEL_FILES, "space": SPACE_FILES, "browser-space": BROWSER_SPACE_FILES, "dataset": DATASET_FILES,
    "metric": METRIC_FILES, "benchmark": BENCHMARK_FILES,
}  # fmt: skip
_FOLDERS = {"dataset": "dataset_script", "metric": "metrics/kl_grading"}


@dataclass(frozen=True)
class Publication:
    """What is published, and where.

    Raises:
        ReleaseError: what cannot be published so.
    """

    # Model folder; of a space a published model, of one in the browser either; of a data set or metric its folder
    # here; of a benchmark a corpus.
    subject: str
    repo_id: str
    kind: str = "model"  # of ALLOWED
    dry_run: bool = False
    output: Path | None = None
    runs: tuple[Path, ...] = ()
    evaluations: tuple[Path, ...] = ()
    dtype: str | None = None
    base_model: str | None = None
    trained_on: str | None = None
    pythons: tuple[str, ...] = ()
    private: bool = False
    tag: str | None = None
    message: str = "Release of CLIP-KOA"
    onnx: bool = False  # of a model: also its ONNX graphs
    entries: Path | None = None  # of a benchmark

    def __post_init__(self):
        if self.kind not in ALLOWED:
            raise ReleaseError(
                "name one of --space, --browser-space, --dataset, --metric and --benchmark, or none for a model."
            )
        for name in (self.repo_id, *([self.subject] if self.kind == "space" else ())):
            try:
                validate_repo_id(name)
            except HFValidationError as error:
                raise ReleaseError(str(error)) from error
            if "/" not in name:
                raise ReleaseError(f"{name}: name the repository as USER/NAME.")
        if self.kind != "model" and not (PROJECT / "setup.cfg").is_file():
            raise ReleaseError(
                f"--{self.kind} publishes files of the project that an installed package lacks: run it in a checkout."
            )
        folder = _FOLDERS.get(self.kind)
        if folder and Path(self.subject).resolve() != PROJECT / folder:
            raise ReleaseError(f"--{self.kind} publishes {folder}: give that in place of {self.subject}.")
        if self.onnx and self.kind != "model":
            raise ReleaseError(f"--onnx is for a model: leave it out with --{self.kind}.")
        if self.dry_run and not self.output:
            raise ReleaseError("--dry_run needs --output, a new folder to look at.")
        for name in ("message", "tag"):
            if found := find_form(getattr(self, name) or ""):
                raise ReleaseError(f"--{name} holds {found}.")

    @property
    def repo_type(self) -> str:
        """The Hub's type of repository for it; a metric is a Space of its own."""
        return {"metric": "space", "browser-space": "space", "benchmark": "dataset"}.get(self.kind, self.kind)


def publish(publication: Publication) -> None:
    """Builds, checks, shows and uploads.

    Raises:
        ReleaseError: a release that must not be published.
        HubError: an upload that did not succeed.
    """
    with Workplace(publication.output) as place:
        known = {}
        release = _build(publication, place.release, known)
        files = check_folder(place.release, ALLOWED[publication.kind], private_of(publication, place.folder), known)
        if release:
            for python in (sys.executable, *publication.pythons):
                for way, difference in check_loading(place.release, release.expected, python).items():
                    print(f"loads with {way}: largest difference {difference:.1g}")
        folder = place.keep(place.release)
        for file in files:
            print(f"{file.size:>12,}  {file.name}")
        print(f"{sum(file.size for file in files):>12,}  bytes in {len(files)} files for {publication.repo_id}")
        if publication.dry_run:
            print(f"Nothing was uploaded; the release is in {publication.output}.")
            return
        _upload(publication, folder, files)


def private_of(publication: Publication, folder: Path) -> dict[str, str]:
    """What no file may hold, and what it is: tokens, and what names this machine and its folders."""
    holds_model = publication.kind in ("model", "benchmark") or (
        publication.kind == "browser-space" and Path(publication.subject).is_dir()
    )
    subject = (Path(publication.subject),) if holds_model else ()
    public = " ".join(map(str, (publication.repo_id, publication.base_model, publication.trained_on)))
    return {**tokens(), **traces(folder, *subject, public=public)}


def _build(publication: Publication, folder: Path, known: dict[str, str]) -> Release | None:
    """Builds the folder; returns the release where it is a model's. `known` gets what `check_folder` takes so."""
    if publication.kind == "space":
        build_space(folder, publication.repo_id, publication.subject)
    elif publication.kind == "browser-space":
        known |= build_browser_space(folder, publication.repo_id, publication.subject)
    elif publication.kind == "dataset":
        build_dataset(folder)
    elif publication.kind == "metric":
        build_metric(folder)
    elif publication.kind == "benchmark":
        build_benchmark(folder, publication.subject, publication.repo_id, publication.entries)
    else:
        return build_release(
            Path(publication.subject), folder, publication.repo_id, dtype=publication.dtype,
            evaluations=publication.evaluations, base_model=publication.base_model, runs=publication.runs,
            trained_on=publication.trained_on, onnx=publication.onnx,
        )  # fmt: skip
    return None


def _upload(publication: Publication, folder: Path, files: list) -> None:
    validate_online(folder, publication.repo_type)
    print(f"Uploading to {publication.repo_id}", flush=True)
    oid = upload(
        folder, files, publication.repo_id, repo_type=publication.repo_type, private=publication.private,
        tag=publication.tag, message=publication.message,
        space_sdk={"space": "gradio", "browser-space": "static", "metric": "static"}.get(publication.kind),
    )  # fmt: skip
    tag = f", tag {publication.tag}." if publication.tag else "."
    print(f"Published as {publication.repo_id} at revision {oid}{tag}")
