"""What every export has: a model folder that it is made of, a place to lie in, and files that go with it."""

import shutil
from pathlib import Path

from clip_koa.grading.model_loading import check_name
from modeling_clip_koa import CALIBRATION_FILE, TYPICALITY_FILE, CLIPKOAError

_NEEDED = ("config.json", "preprocessor_config.json")
_BESIDE = (*_NEEDED, CALIBRATION_FILE, TYPICALITY_FILE)


class ExportError(CLIPKOAError, ValueError):
    """A checkpoint that cannot be exported, or an export that does not grade as it does; the message says which."""


def check_folders(checkpoint: Path, folder: Path, mark: str, kind: str = "export") -> None:
    """Refuses what cannot be exported, or a place that holds something else.

    Args:
        mark: the file by which an earlier export of this `kind` is known.

    Raises:
        CheckpointError: a file in the place of a checkpoint, or a name that is none of a folder.
        ExportError: no model folder, or a folder in the export's place that is no export.
    """
    if folder.exists() and not (folder / mark).is_file():
        raise ExportError(f"{folder} is there and no {kind}: name another folder.")
    check_name(str(checkpoint))
    for name in _NEEDED:
        if not (checkpoint / name).is_file():
            raise ExportError(f"{checkpoint} has no {name}: name a model folder, such as runs/demo/best.")


def copy_beside(checkpoint: Path, folder: Path, *more: str) -> None:
    """Copies what grading needs beside the networks, and `more` of the checkpoint's files, where there are such."""
    for name in (*_BESIDE, *more):
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, folder / name)
