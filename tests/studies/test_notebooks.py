"""The notebooks: what is stored in them is what they print, and they run from top to bottom."""

import json
import re
from pathlib import Path

import pytest
from conftest import ROOT

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

from studies import notebooks  # noqa: E402

_LARGEST = 250_000  # bytes of a file
_LONGEST = 20  # lines of a cell
_MACHINE = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|usr|opt|content|Users)/|[A-Z]:\\")
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def _texts(cell) -> list[str]:
    """What a cell printed, but for errors and warnings."""
    return [output["text"] for output in cell["outputs"] if output.get("name") == "stdout"]


@pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_stored_is_of_a_run_of_these_cells_with_these_weights(path):
    notebook = notebooks.read(path)
    cells = notebooks.code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert not [output["text"] for output in outputs if output.get("name") == "stderr"]
    assert notebook["metadata"]["clip_koa"] == notebooks.digests(notebook), "run `make notebooks`"


@pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_of_no_machine(path):
    notebook = notebooks.read(path)
    assert path.stat().st_size < _LARGEST
    assert all(len(cell["source"].splitlines()) <= _LONGEST for cell in notebooks.code_cells(notebook)[1:])
    texts = [text for cell in notebooks.code_cells(notebook) for text in _texts(cell)]
    assert texts and not [text for text in texts if _MACHINE.search(text)]
    written = "\n".join(cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    assert f"/blob/main/notebooks/{path.name})" in written and "Research software, not for care" in written
    links = [link for link in _LINK.findall(written) if not link.startswith("https:")]
    assert links and not [link for link in links if not (path.parent / link).exists()]


def test_both_fetch_the_project_from_the_one_place_that_their_badges_name():
    found = set()
    for path in notebooks.NOTEBOOKS:
        text = path.read_text(encoding="utf-8")
        found |= set(re.findall(r"https://github\.com/([\w-]+/[\w-]+)", text))
        found |= set(re.findall(r"research\.google\.com/github/([\w-]+/[\w-]+)/blob", text))
    assert found == {"clip-koa/clip-koa"}


def test_a_cell_that_was_edited_is_told():
    notebook = notebooks.read(notebooks.NOTEBOOKS[0])
    before = notebooks.digests(notebook)
    notebooks.code_cells(notebook)[-1]["source"] += "\n"
    assert notebooks.digests(notebook)["cells"] != before["cells"]


def test_a_cell_that_fails_is_named(tmp_path, capsys):
    path = tmp_path / "notebooks" / "some.ipynb"
    path.parent.mkdir()
    cells = [nbformat.v4.new_code_cell(source) for source in ("print('hello')", "1 / 0", "print('never')")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    before = path.read_bytes()
    assert notebooks.main([str(path)]) == 2
    assert "some.ipynb: code cell 2 failed (ZeroDivisionError: division by zero).\nhello" in capsys.readouterr().err
    assert path.read_bytes() == before
    path.write_text("no notebook")
    assert notebooks.main([str(path)]) == 2 and "is no notebook" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom(path, tmp_path):
    """With fewer drawings and one pass. What does not depend on these is printed as it is stored."""
    run = notebooks.execute(path, tmp_path, NOTEBOOK_PEOPLE="44", NOTEBOOK_EPOCHS="1")
    stored = notebooks.code_cells(notebooks.read(path))
    same = [cell for cell in stored if "fixed" in cell["metadata"].get("tags", ())]
    fresh = {cell["id"]: _texts(cell) for cell in notebooks.code_cells(run)}
    assert len(same) >= 1 and all(fresh[cell["id"]] == _texts(cell) for cell in same)
    assert len(fresh) == len(stored) and not list((ROOT / "notebooks").glob("runs"))
    runs = [json.loads(file.read_text()) for file in Path(tmp_path).glob("runs/**/status.json")]
    assert [status["state"] for status in runs] == ["finished"]
