"""A release that gets the words and the examples of today, or stays as it was."""

import shutil

import pytest

from clip_koa import RELEASED_MODEL
from clip_koa.publishing import examples, renew


def _content(folder) -> dict:
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def no_release(tmp_path):
    """A folder with a card that says nothing of a training, such as the project's own."""
    folder = tmp_path / "folder"
    (folder / "examples").mkdir(parents=True)
    (folder / "examples" / "own.png").write_bytes(b"own")
    (folder / examples.PICTURE).parent.mkdir(parents=True, exist_ok=True)
    (folder / examples.PICTURE).write_bytes(b"picture")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A project\n")
    return folder


def test_what_is_no_release_stays(no_release, capsys):
    before = _content(no_release)
    assert renew.main([str(no_release), "somebody/model"]) == 2
    assert "has no section on its training" in capsys.readouterr().err
    assert _content(no_release) == before


def test_without_the_examples_of_the_project_a_release_keeps_its_own(no_release, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(examples, "EXAMPLES", tmp_path / "nowhere")
    before = _content(no_release)
    assert renew.main([str(no_release), "somebody/model"]) == 2
    assert "in a checkout" in capsys.readouterr().err and _content(no_release) == before


def test_a_release_is_renewed_to_itself(tmp_path):
    if not (RELEASED_MODEL / "model.safetensors").exists():
        pytest.skip("the released model is not there")
    shutil.copytree(RELEASED_MODEL, tmp_path / "release")
    for path in (tmp_path / "release" / "examples").iterdir():
        path.write_bytes(b"old")
    assert renew.main([str(tmp_path / "release"), "clip-koa/clip-koa-small"]) == 0
    assert _content(tmp_path / "release" / "examples") == _content(RELEASED_MODEL / "examples")
    assert sorted(path.name for path in (tmp_path / "release").iterdir()) == sorted(
        path.name for path in RELEASED_MODEL.iterdir()
    )
