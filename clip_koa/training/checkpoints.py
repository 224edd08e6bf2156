"""What a run leaves on disk: training checkpoints to go on from, and complete model folders to load.

A folder is written beside its place, flushed, and moved there when it is whole; a checkpoint also carries the digests
of its files. So a kill, a crash or a full disk at any moment leaves the one before usable, and a damaged one is not
taken.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from safetensors import SafetensorError

from clip_koa.files import file_digest
from clip_koa.training.lora import merged
from clip_koa.training.run_config import RunConfigError
from modeling_clip_koa import CLIPKOAError

_STEP_FOLDER = re.compile(r"step_(\d{6,})")
_MANIFEST = "checkpoint.json"
_KEPT = 2  # of the checkpoints: the one before the newest, should that be damaged


class SaveError(CLIPKOAError, OSError):
    """A checkpoint or model folder that could not be written; the message names what is still usable."""


@dataclass
class TrainState:
    """How far a run has come. Registered with the accelerator, so that checkpoints carry it."""

    epoch: int = 0  # epochs completed
    batches: int = 0  # batches of the running epoch that are done
    step: int = 0  # optimizer steps
    best_value: float | None = None
    best_step: int = 0

    def state_dict(self) -> dict:
        """For the accelerator."""
        return asdict(self)

    def load_state_dict(self, state: dict) -> None:
        """For the accelerator; checkpoints of earlier versions hold more."""
        for option in fields(self):
            setattr(self, option.name, state[option.name])


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Gives a temporary folder beside `folder` and puts it in its place when the block ends without an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(folder, "writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        _flush(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _put_in_place(temporary, folder)


def restore_previous(folder: Path) -> None:
    """Brings back what stood in `folder` where a kill came just between moving it away and moving the next one in."""
    previous = _beside(folder, "previous")
    if previous.exists() and not folder.exists():
        os.replace(previous, folder)


def _beside(folder: Path, purpose: str) -> Path:
    return folder.with_name(f".{folder.name}.{purpose}")


def _put_in_place(temporary: Path, folder: Path) -> None:
    previous = _beside(folder, "previous")
    restore_previous(folder)
    shutil.rmtree(previous, ignore_errors=True)
    if folder.exists():
        os.replace(folder, previous)
    os.replace(temporary, folder)
    _flush_entry(folder.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Has the system write all files of a folder to the disk, so that none is empty after a power cut."""
    for path in [*(path for path in folder.rglob("*") if path.is_file()), folder]:
        _flush_entry(path)


def _flush_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_model_folder(folder: Path, model, image_processor, tokenizer, files: dict[str, bytes] | None = None) -> None:
    """Writes what `from_pretrained` takes: weights, config, code, image processor and tokenizer.

    Args:
        files: written beside them, by name.

    Raises:
        SaveError: it could not be written; what stood there before still stands.
    """
    try:
        with written_whole(folder) as temporary:
            merged(model).save_pretrained(temporary)
            image_processor.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            for name, content in (files or {}).items():
                (temporary / name).write_bytes(content)
    except (OSError, SafetensorError) as error:
        kept = "The model saved there before is still whole." if folder.exists() else "None was saved there before."
        raise SaveError(f"{folder} could not be written ({error}). {kept}") from error


def list_checkpoints(folder: Path) -> list[Path]:
    """Training checkpoints under `folder`, oldest first."""
    found = [path for path in folder.glob("step_*") if _STEP_FOLDER.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(_STEP_FOLDER.fullmatch(checkpoint.name)[1])


def last_checkpoint(folder: Path) -> str:
    """The newest checkpoint under `folder`, as a message names it."""
    return str(next(reversed(list_checkpoints(folder)), "none yet"))


def save_checkpoint(accelerator, folder: Path, state: TrainState) -> None:
    """Writes `folder/step_000123` with everything a resume needs, whole or not at all, and keeps the newest two.

    All processes must call it.

    Raises:
        SaveError: it could not be written; the message names the newest checkpoint that is usable.
    """
    target = folder / f"step_{state.step:06d}"
    temporary = _beside(target, "writing")
    try:
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(temporary))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _write_manifest(temporary)
            _flush(temporary)
            _put_in_place(temporary, target)
            for old in list_checkpoints(folder)[:-_KEPT]:
                shutil.rmtree(old)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch reports a full disk as a RuntimeError
        shutil.rmtree(temporary, ignore_errors=True)
        usable = list_checkpoints(folder)
        hint = f"{usable[-1]} is whole: --resume latest goes on from it" if usable else "There is no checkpoint yet"
        raise SaveError(f"{target} could not be written ({str(error).splitlines()[0]}). {hint}.") from error
    accelerator.wait_for_everyone()


def _write_manifest(folder: Path) -> None:
    digests = {
        str(path.relative_to(folder)): file_digest(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }
    (folder / _MANIFEST).write_text(json.dumps(digests, indent=1), encoding="utf-8")


def find_damage(checkpoint: Path) -> str:
    """Why a checkpoint can't be used: the file that is missing or differs from what was saved; empty if it can."""
    try:
        digests = json.loads((checkpoint / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{_MANIFEST} is missing or damaged"
    for name, digest in digests.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if file_digest(path) != digest:
            return f"{name} is not what was saved"
    return ""


def find_checkpoint(resume: str, folder: Path, warn=print) -> Path | None:
    """The checkpoint that `resume` names: none for `""`, the newest whole one for `"latest"`, else that folder.

    Args:
        resume: what `--resume` names.
        folder: of the run's checkpoints; a checkpoint of another run is none of this one's, for nothing tells whether
            it was trained by this recipe on these X-rays.
        warn: called with a line for each damaged checkpoint that is passed over.

    Raises:
        RunConfigError: a named folder that is not there, not under `folder`, or damaged, or `"latest"` where all are
            damaged.
    """
    if not resume:
        return None
    if resume == "latest":
        checkpoints = list_checkpoints(folder)
        for checkpoint in reversed(checkpoints):
            damage = find_damage(checkpoint)
            if not damage:
                return checkpoint
            warn(f"{checkpoint} is passed over: {damage}.")
        if checkpoints:
            raise RunConfigError(f"All checkpoints under {folder} are damaged: remove the run folder to start again.")
        return None
    named = {Path(resume).resolve(), (folder / resume).resolve()}
    for checkpoint in list_checkpoints(folder):
        if checkpoint.resolve() in named:
            if damage := find_damage(checkpoint):
                raise RunConfigError(f"--resume {resume} can't be used: {damage}. Pass latest or another checkpoint.")
            return checkpoint
    raise RunConfigError(f"--resume {resume} is no checkpoint of this run: pass latest or a folder under {folder}.")


def drop_checkpoints_after(folder: Path, step: int) -> None:
    """Removes the checkpoints of later steps: a run that goes on from `step` writes them again."""
    for checkpoint in list_checkpoints(folder):
        if _step_of(checkpoint) > step:
            shutil.rmtree(checkpoint)
