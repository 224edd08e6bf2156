"""Publishing through the real clients to a Hub on the loopback."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT
from hub_server import HubServer

TOKEN = "hf_" + "testtoken" * 4
UPLOAD = """
import sys
from pathlib import Path
from clip_koa.publishing import hub
hub.WAITS = (0.01,)
folder = Path(sys.argv[1])
try:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    print(hub.upload(folder, files, "anna/knees", tag=sys.argv[2] or None))
except hub.HubError as error:
    sys.exit(str(error))
"""


@pytest.fixture
def server():
    server = HubServer()
    yield server
    server.shutdown()


@pytest.fixture
def push(server, tmp_path):
    """Uploads a folder in a fresh process, with a token."""
    folder = tmp_path / "release"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\ncard")
    (folder / "model.safetensors").write_bytes(b"weights")

    def run(tag=""):
        environment = {
            **os.environ, "HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": TOKEN, "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        result = subprocess.run(
            [sys.executable, "-c", UPLOAD, str(folder), tag],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert TOKEN not in result.stdout + result.stderr
        return result

    run.folder = folder
    return run


def test_create_upload_tag_and_a_second_push_of_one_file(server, push):
    first = push("v1")
    assert first.returncode == 0, first.stderr
    assert set(server.files("v1")) == {"README.md", "model.safetensors"}
    (push.folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nanother card")
    server.log.clear()
    assert push().returncode == 0
    assert not [path for _, path in server.log if path.startswith("/lfs/")]
    assert server.files("main")["README.md"].endswith(b"another card") and server.files("v1") != server.files("main")
    assert "has the tag v1" in push("v1").stderr


def test_an_interrupted_upload_changes_nothing_and_the_next_completes_it(server, push):
    server.fail = {"/commit/": 403}
    assert "answered 403" in push("v1").stderr
    assert not server.files("main") and not server.tags
    server.fail = {}
    assert push("v1").returncode == 0 and len(server.files("v1")) == 2


@pytest.mark.parametrize("status", [401, 403, 409])
def test_refusals_are_clear(server, push, status):
    server.fail = {"/preupload/": status}
    assert f"answered {status}" in push().stderr
