"""Compiled networks kept on disk, so that a second start of the same model on the same machine compiles nothing.

They lie in a hidden folder beside the model folder, or, where that cannot be written, in the user's cache. An entry is
known by all that it depends on: the model's weights and settings, the code that defines the networks, the versions of
the libraries, the processor and the precision. So it is never taken for another model's.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from clip_koa.files import file_digest
from clip_koa.grading import provenance
from clip_koa.locks import InUseError, WriterLock
from dataset_script.files import new_folder

CACHE_VARIABLE = "CLIP_KOA_CACHE"  # of the environment: a folder to keep them in, in place of all others
_KEPT = 4  # entries of a model, the newest: those of several precisions and machines
_DEFINED_BY = ("torch", "transformers", "openvino")
_DIGITS = 16


def entry_name(name: str, **others: str) -> str:
    """By which a model's entry is known.

    Args:
        name: model folder, or Hub id of one that is loaded already.
        **others: what it depends on besides the model, the code and the libraries.
    """
    code = sorted((Path(provenance.__file__).parents[2] / "modeling_clip_koa").glob("*.py"))
    code += [Path(__file__).with_name(file) for file in ("networks.py", "openvino_network.py")]
    depends = {
        "model": provenance.model_digest(name),
        "code": [file_digest(path) for path in code],
        "libraries": {library: version(library) for library in _DEFINED_BY},
        **others,
    }
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:_DIGITS]


def find_entry(name: str, entry: str) -> Path | None:
    """The folder of an entry; None where there is none."""
    return next((place / entry for place in _places(name) if (place / entry).is_dir()), None)


def keep_entry(name: str, entry: str, files: dict[str, bytes]) -> Path | None:
    """Keeps files as an entry, in the first place that can be written.

    Returns:
        The entry's folder; None where it can be written nowhere, or another process writes it now.
    """
    for place in _places(name):
        try:
            with WriterLock(place / entry):
                if not (place / entry).is_dir():
                    with new_folder(place / entry) as folder:
                        for file, content in files.items():
                            (folder / file).write_bytes(content)
                _forget_older(place)
            return place / entry
        except InUseError:
            return None
        except OSError:  # the next place may be one that can be written
            continue
    return None


def forget_entry(folder: Path) -> None:
    """Removes an entry that cannot be used."""
    shutil.rmtree(folder, ignore_errors=True)


def _forget_older(place: Path) -> None:
    entries = [path for path in place.iterdir() if path.is_dir() and not path.name.startswith(".")]
    for folder in sorted(entries, key=lambda path: path.stat().st_mtime, reverse=True)[_KEPT:]:
        forget_entry(folder)


def _places(name: str) -> Iterator[Path]:
    """Where the entries of a model may lie, the first that can be written."""
    folder = Path(os.path.abspath(name))
    is_folder = folder.is_dir()
    known_by = hashlib.sha256((str(folder) if is_folder else name).encode()).hexdigest()[:_DIGITS]
    if chosen := os.environ.get(CACHE_VARIABLE):
        yield Path(chosen) / known_by
        return
    if is_folder:
        yield folder.with_name(f".{folder.name}.openvino")
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    yield Path(caches) / "clip-koa" / known_by
