"""The page in the browser as a static Space: built, checked, published on the loopback Hub."""

import json
import os
import subprocess
import sys

import pytest
from browser.conftest import packed  # noqa: F401
from conftest import ROOT
from hub_server import HubServer
from webapp.conftest import example_folder, model_folder  # noqa: F401

from clip_koa.commands import main
from clip_koa.files import file_digest
from clip_koa.publishing import browser_space
from clip_koa.publishing.errors import ReleaseError
from clip_koa.publishing.release_check import check_folder

pytest.importorskip("onnxruntime", reason="needs the extra onnx")


@pytest.fixture(scope="module")
def space(packed, model_folder, example_folder, tmp_path_factory):  # noqa: F811
    """The Space of a tiny model, as --dry_run leaves it."""
    folder = tmp_path_factory.mktemp("space") / "space"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(browser_space, "_EXAMPLES", example_folder)
        arguments = [
            "publish",
            str(model_folder),
            "anna/knees",
            "--browser-space",
            "--dry_run",
            "--output",
            str(folder),
        ]
        assert main(arguments) == 0
    return folder


def test_the_space_is_static_and_names_no_folder_of_this_machine(space, model_folder):  # noqa: F811
    card = (space / "README.md").read_text()
    assert card.startswith("---\ntitle: knees\n") and "sdk: static\n" in card and "models:" not in card
    assert "cross-origin-embedder-policy: require-corp" in card and "Research only." in card
    facts = json.loads((space / "model" / "model.json").read_text())
    assert facts["name"] == model_folder.name and len(facts["digest"]) == 64
    for path in space.rglob("*"):
        assert not path.is_file() or str(model_folder.parent).encode() not in path.read_bytes()
    assert (space / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_a_file_that_was_changed_after_it_was_built_is_refused(space):
    name, binary = "vendor/ort.wasm.min.mjs", (".mjs", ".js", ".wasm", ".onnx")
    files = [path for folder in ("vendor", "model") for path in (space / folder).iterdir() if path.suffix in binary]
    known = {path.relative_to(space).as_posix(): file_digest(path) for path in files}
    assert len(check_folder(space, browser_space.BROWSER_SPACE_FILES, {}, known)) > 40
    with pytest.raises(ReleaseError, match=f"{name} is not the file that the release was built with"):
        check_folder(space, browser_space.BROWSER_SPACE_FILES, {}, known | {name: "0" * 64})


@pytest.mark.slow
def test_it_is_published_by_the_command(packed, model_folder, space):  # noqa: F811
    server = HubServer()
    try:
        result = subprocess.run(
            [sys.executable, "push_to_hub.py", str(model_folder), "anna/knees", "--browser-space"], cwd=ROOT,
            env={**os.environ, "HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
                 "HF_TOKEN": "hf_" + "testtoken" * 4, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert "Published as anna/knees at revision" in result.stdout
        published = server.files("main")
        there = {path.relative_to(space).as_posix() for path in space.rglob("*") if path.is_file()}
        assert {name for name in published if not name.startswith("examples/")} <= there
        assert published["sw.js"] == (space / "sw.js").read_bytes() and "model/grade.onnx" in published
        assert any(path.startswith("/api/spaces/anna/knees/commit/") for _, path in server.log)
    finally:
        server.shutdown()


def test_two_kinds_at_once_are_refused(capsys):
    assert main(["publish", "a", "anna/knees", "--space", "--browser-space"]) == 2
    assert "name one of --space, --browser-space, --dataset, --metric and --benchmark" in capsys.readouterr().err
