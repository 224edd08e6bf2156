"""What a run leaves on disk: training checkpoints to go on from, and complete model folders to load."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from clip_koa.training.run_config import RunConfigError

KEEP_CHECKPOINTS = 2
_STEP_FOLDER = re.compile(r"step_(\d{6,})")


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
        """For the accelerator."""
        for name, value in state.items():
            setattr(self, name, value)


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Gives a temporary folder beside `folder` and puts it in its place when the block ends without an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    previous = folder.with_name(f".{folder.name}.previous")
    shutil.rmtree(previous, ignore_errors=True)
    if folder.exists():
        os.replace(folder, previous)
    os.replace(temporary, folder)
    shutil.rmtree(previous, ignore_errors=True)


def save_model_folder(folder: Path, model, image_processor, tokenizer) -> None:
    """Writes what `from_pretrained` takes: weights, config, code, image processor and tokenizer."""
    with written_whole(folder) as temporary:
        model.save_pretrained(temporary)
        image_processor.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete training checkpoints under `folder`, oldest first."""
    found = [path for path in folder.glob("step_*") if _STEP_FOLDER.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(_STEP_FOLDER.fullmatch(path.name)[1]))


def save_checkpoint(accelerator, folder: Path, state: TrainState) -> None:
    """Writes `folder/step_000123` with everything a resume needs, whole or not at all, and drops the oldest ones.

    All processes must call it.
    """
    target = folder / f"step_{state.step:06d}"
    temporary = folder / f".{target.name}.writing"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
        for old in list_checkpoints(folder)[:-KEEP_CHECKPOINTS]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def find_checkpoint(resume: str, folder: Path) -> Path | None:
    """The checkpoint that `resume` names: none for `""`, the newest (or none yet) for `"latest"`, else that folder.

    Raises:
        RunConfigError: a named folder that is not there.
    """
    if not resume:
        return None
    if resume == "latest":
        checkpoints = list_checkpoints(folder)
        return checkpoints[-1] if checkpoints else None
    for path in (Path(resume), folder / resume):
        if path.is_dir():
            return path
    raise RunConfigError(f"resume={resume!r} is no checkpoint: pass latest or a folder under {folder}.")
