"""What a run writes down: metrics.jsonl, its trackers' files, what repeats it in run.json, status.json."""

import hashlib
import json
import math
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import torch
from accelerate import Accelerator
from datasets import DatasetDict, Image

from clip_koa.files import file_digest, write_file, writing
from clip_koa.training.checkpoints import drop_checkpoints_after
from clip_koa.training.run_config import RunConfig, RunConfigError, read_run_config
from clip_koa.training.status import write_status
from clip_koa.training.trackers import log_pictures, open_trackers

_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "evaluate", "safetensors", "numpy", "Pillow")
# A live run shows that often that it lives.
STATUS_SECONDS = 10.0
_PROJECT = Path(__file__).parents[2]


def data_digest(corpus: DatasetDict) -> str:
    """SHA-256 over split, file name, grade and bytes of every X-ray, in the corpus's order."""
    digest = hashlib.sha256()
    for name, split in sorted(corpus.items()):
        for batch in split.cast_column("image", Image(decode=False)).iter(batch_size=256):
            for file, label, image in zip(batch["file"], batch["label"], batch["image"], strict=True):
                content = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
                digest.update(f"{name}\0{file}\0{label}\0{len(content)}\0".encode())
                digest.update(content)
    return digest.hexdigest()


def differences_from(folder: Path, config: RunConfig) -> list[str]:
    """What `config` would have learned otherwise than the run in a folder, as `RunConfig.differences` says it.

    Soft labels are compared by the content of their file, which may lie elsewhere now. Where run.json does not tell
    it, as that of an earlier version, they are compared by their path.

    Raises:
        RunConfigError: the run's config.yaml cannot be read.
    """
    before, labels = read_run_config(folder / "config.yaml"), config.data.soft_labels
    path = folder / "run.json"
    known = json.loads(path.read_text(encoding="utf-8"))["data"].get("soft_labels") if path.exists() else None
    if not (known and Path(labels).is_file()):
        return config.differences(before)
    differences = config.differences(before.changed({"data.soft_labels": labels}))
    if (digest := file_digest(Path(labels))) != known:
        differences.append(f"data.soft_labels: a file of SHA-256 {known[:12]} -> {labels} of {digest[:12]}")
    return differences


class Recorder:
    """Writes a run's records, on the main process; the others' calls do nothing."""

    def __init__(self, config: RunConfig, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        self.told = -math.inf  # when status.json was last written
        self.folder = Path(config.run.output_dir)

    def start(self, corpus: DatasetDict, step: int) -> None:
        """Opens the records, at `step` of a resumed run; what it wrote after that step is removed.

        Raises:
            RunConfigError: the X-rays are not those that the resumed run was trained on.
        """
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write_run(corpus, step)
            write_file(self.folder / "config.yaml", self.config.to_yaml().encode())
            # First, so that no kill leaves a checkpoint of steps that metrics.jsonl does not tell.
            drop_checkpoints_after(self.folder / "checkpoints", step)
            self._drop_records_after(step)
        open_trackers(self.accelerator, self.config.trackers, self.folder, self.config.values(), step)

    def _write_run(self, corpus: DatasetDict, step: int) -> None:
        path = self.folder / "run.json"
        data = {"digest": data_digest(corpus), "counts": {name: len(split) for name, split in corpus.items()}}
        run = {"launches": []}
        if path.exists():
            run = json.loads(path.read_text(encoding="utf-8"))
            if any(run["data"][name] != value for name, value in data.items()):
                raise RunConfigError(
                    f"{self.folder} was trained on other X-rays ({run['data']['counts']}, digest "
                    f"{run['data']['digest'][:12]}; now {data['counts']}, {data['digest'][:12]}): start a new run."
                )
        if labels := self.config.data.soft_labels:
            data["soft_labels"] = file_digest(Path(labels))
        run["data"] = data  # that of an earlier version does not tell the soft labels
        run["launches"].append({"from_step": step, **describe_launch(self.accelerator)})
        write_file(path, json.dumps(run, indent=1).encode())

    def _drop_records_after(self, step: int) -> None:
        """A resumed run writes these lines again, and the one that a kill cut short."""
        path = self.folder / "metrics.jsonl"
        if path.exists():
            lines = [
                line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")
            ]
            records = [json.loads(line) for line in lines]
            kept = [record for record in records if record["step"] <= step and record.get("checkpoint") != "best"]
            write_file(path, "".join(json.dumps(record) + "\n" for record in kept).encode())

    def record(self, **values) -> None:
        """Adds a line to metrics.jsonl and passes its numbers on to the trackers."""
        if self.accelerator.is_main_process:
            with writing(self.folder / "metrics.jsonl") as path, open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        kind = values["split"] if values["kind"] == "evaluation" else "train"
        if values.get("checkpoint") == "best":
            kind = f"best_{kind}"
        self.accelerator.log(dict(_numbers(values, kind)), step=values["step"])

    def show(self, title: str, shown: list, step: int) -> None:
        """Shows pictures with captions in the dashboards that take some; see `log_pictures`."""
        log_pictures(self.accelerator, title, shown, step)

    def status(self, state: str, **values) -> None:
        """Writes status.json: `running`, `interrupted`, `failed` or `finished`."""
        if self.accelerator.is_main_process and self.folder.is_dir():
            write_status(self.folder, state, **values)
            self.told = time.monotonic()

    def is_status_old(self) -> bool:
        """Whether status.json was last written `STATUS_SECONDS` ago or earlier."""
        return time.monotonic() - self.told >= STATUS_SECONDS


def _numbers(values: dict, prefix: str):
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}/{name}")
        elif isinstance(value, int | float) and name not in ("step", "num_samples"):
            yield f"{prefix}/{name}", value


def describe_launch(accelerator: Accelerator) -> dict:
    """When, what and where: command line, versions, revision of the code, machine."""
    return {
        "time": _now(),
        "command": [sys.executable, *sys.argv],
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "git": _git_revision(),
        "machine": {
            "system": platform.platform(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
            "processes": accelerator.num_processes,
            "threads": torch.get_num_threads(),
            "mixed_precision": accelerator.mixed_precision,
        },
    }


def _git_revision() -> dict:
    """Revision of the project's code and whether it was changed since; empty where it is no git repository."""

    def git(*arguments):
        result = subprocess.run(["git", "-C", str(_PROJECT), *arguments], capture_output=True, text=True, timeout=30)
        return result.stdout.strip() if result.returncode == 0 else None

    try:
        # An installed package may lie below someone else's repository.
        if Path(git("rev-parse", "--show-toplevel") or "/nowhere").resolve() != _PROJECT.resolve():
            return {}
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.TimeoutExpired):
        return {}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
