"""Runs the notebooks from top to bottom and stores what they print: what `make notebooks` does.

    python -m studies.notebooks [FILE ...]

Each runs in a folder of its own that is a checkout to it, so nothing is left behind and no path of a machine is
stored. The notebook also keeps digests of its cells and of the released weights, by which tests tell that its outputs
are theirs.
"""

import argparse
import base64
import hashlib
import io
import os
import sys
import tempfile
from pathlib import Path

from PIL import Image

import clip_koa
from clip_koa.files import file_digest, write_file
from dataset_script.exit_status import main_of
from modeling_clip_koa import CLIPKOAError

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = tuple(sorted((ROOT / "notebooks").glob("*.ipynb")))
# What of a checkout the notebooks read.
_READ = ("models", "examples", "configs")
_SECONDS = 3600  # that a cell may take
_LONGEST = 200  # characters of a reason


class NotebookError(CLIPKOAError, RuntimeError):
    """A notebook that cannot be read, or a cell that failed; the message names it."""


def read(path: Path) -> dict:
    """A notebook.

    Raises:
        NotebookError: it is none.
    """
    import nbformat

    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        raise NotebookError(f"{path} is no notebook: {str(error).splitlines()[0]}") from error
    return notebook


def code_cells(notebook: dict) -> list[dict]:
    """Its cells of code, in order."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def digests(notebook: dict) -> dict[str, str]:
    """Of its code, and of the released model's weights."""
    cells = "\0".join(cell["source"] for cell in code_cells(notebook)).encode()
    return {
        "cells": hashlib.sha256(cells).hexdigest(),
        "weights": file_digest(clip_koa.RELEASED_MODEL / "model.safetensors"),
    }


def execute(path: Path, checkout: Path, **variables: str) -> dict:
    """A notebook with the outputs of a run from top to bottom.

    Args:
        path: the notebook; outputs that it holds are left out.
        checkout: an empty folder, which becomes a checkout that the notebook works in.
        **variables: of its environment.

    Raises:
        NotebookError: it is no notebook, or a cell failed.
    """
    # Here, so that a missing package is told in a line.
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    notebook = read(path)
    for cell in code_cells(notebook):
        cell["outputs"], cell["execution_count"] = [], None
    for name in _READ:
        (checkout / name).symlink_to(ROOT / name)
    (checkout / path.parent.name).mkdir()
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    client = NotebookClient(
        notebook,
        timeout=_SECONDS,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": checkout / path.parent.name}},
    )
    try:
        client.execute(env={**os.environ, "PYTHONPATH": paths, **variables})
    except (CellExecutionError, DeadKernelError, TimeoutError) as error:
        done = sum(cell["execution_count"] is not None for cell in code_cells(notebook))
        reason = f"{error.ename}: {error.evalue}" if isinstance(error, CellExecutionError) else error
        message = f"{path.name}: code cell {done} failed ({str(reason)[:_LONGEST]}).\n{_last_words(notebook)}"
        raise NotebookError(message) from error
    for output in (output for cell in code_cells(notebook) for output in cell["outputs"] if "text" in output):
        output["text"] = output["text"].replace(f"{checkout}{os.sep}", "")
    shrink(notebook)
    notebook["metadata"]["language_info"] = {"name": "python"}
    notebook["metadata"]["clip_koa"] = digests(notebook)
    return notebook


def shrink(notebook: dict) -> None:
    """Stores each picture as JPEG, which takes a fraction of what PNG does."""
    for output in (output for cell in code_cells(notebook) for output in cell["outputs"]):
        if "image/png" in output.get("data", {}):
            picture = Image.open(io.BytesIO(base64.b64decode(output["data"].pop("image/png"))))
            content = io.BytesIO()
            picture.convert("RGB").save(content, "JPEG", quality=80)
            output["data"]["image/jpeg"] = base64.b64encode(content.getvalue()).decode()


def _last_words(notebook: dict) -> str:
    """What the cells printed last."""
    printed = "".join(output.get("text", "") for cell in code_cells(notebook) for output in cell.get("outputs", ()))
    return "\n".join(printed.splitlines()[-3:])


def run(arguments: list[str] | None, prog: str) -> int:
    """Executes notebooks and writes them in place; returns the exit status."""
    import nbformat

    parser = argparse.ArgumentParser(prog=prog, description="Run the notebooks and store what they print.")
    parser.add_argument("notebooks", metavar="FILE", nargs="*", type=Path, default=NOTEBOOKS, help="default: all")
    for path in parser.parse_args(arguments).notebooks:
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(path, Path(folder))
        write_file(path, (nbformat.writes(notebook) + "\n").encode())
        print(f"{path.name}: {len(code_cells(notebook))} cells, {path.stat().st_size / 1000:.0f} kB")
    return 0


main = main_of("studies.notebooks", run)


if __name__ == "__main__":
    sys.exit(main())
