"""Publishing through the real clients to a Hub on the loopback."""

import ast
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from hub_server import HubServer
from safetensors.numpy import save

from clip_koa.commands import main
from clip_koa.publishing import hub, plain_files, publish
from clip_koa.publishing.beside import build_space
from clip_koa.publishing.errors import ReleaseError
from clip_koa.publishing.release_check import check_folder, compare_probe, run_probe
from dataset_script.synthetic import draw_knee

TOKEN = "hf_" + "testtoken" * 4
WEIGHTS = save({"a": np.zeros(4)})
UPLOAD = """
import sys
from pathlib import Path
from clip_koa.publishing import hub
from clip_koa.publishing.release_check import check_folder
hub.WAITS = (0.01,)
folder = Path(sys.argv[1])
try:
    print(hub.upload(folder, check_folder(folder), "anna/knees", tag=sys.argv[2] or None))
except hub.HubError as error:
    sys.exit(str(error))
"""


def _online(server, **more) -> dict:
    return {
        **os.environ, "HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN,
        "PYTHONPATH": str(ROOT), **more,
    }  # fmt: skip


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
    (folder / "model.safetensors").write_bytes(WEIGHTS)

    def run(tag=""):
        result = subprocess.run(
            [sys.executable, "-c", UPLOAD, str(folder), tag], env=_online(server), capture_output=True, text=True,
            timeout=60,
        )  # fmt: skip
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


def test_a_killed_upload_changes_nothing_and_the_next_completes_it(server, push):
    server.stall = "/lfs/"
    command = [sys.executable, "-c", UPLOAD, str(push.folder), "v1"]
    process = subprocess.Popen(command, env=_online(server), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert server.stalled.wait(60)
    process.kill()
    process.wait()
    assert not server.files("main") and not server.tags
    server.stall = None
    assert push("v1").returncode == 0 and len(server.files("v1")) == 2


def test_a_broken_put_is_sent_again(server, push):
    server.fail = {"/lfs/": [500]}
    assert push().returncode == 0
    assert server.files("main")["model.safetensors"] == WEIGHTS


def test_too_many_requests_wait_as_asked_and_trouble_is_told(server, push):
    server.fail = {"/commit/": [429]}
    assert push().returncode == 0
    server.fail = {"/commit/": 500}
    (push.folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nanother")
    failed = push()
    assert "answered 500; the Hub has trouble: push again later" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not server.files("main")["README.md"].endswith(b"another")
    server.fail = {}
    (push.folder / "README.md").write_text("no metadata")
    assert "answered 400; it refuses what was sent" in push().stderr


def _command(server, home, *arguments) -> subprocess.CompletedProcess:
    result = subprocess.run(
        [sys.executable, "push_to_hub.py", *map(str, arguments)], cwd=ROOT, env=_online(server, HF_HOME=str(home)),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert TOKEN not in result.stdout + result.stderr
    return result


def dict_of(grades: list[dict]) -> dict:
    return {grade["label"]: grade["score"] for grade in grades}


HANDLER = """
import base64, io, json, sys
import numpy
from PIL import Image
sys.path.insert(0, sys.argv[1])
from handler import EndpointHandler
content = open(sys.argv[2], "rb").read()
handler = EndpointHandler(sys.argv[1])
text = base64.b64encode(content).decode()
knee = Image.open(io.BytesIO(content))
deep = io.BytesIO()  # the same X-ray with 16 bits, which read_radiograph windows; the server opens it and cuts it off
Image.fromarray(numpy.asarray(knee, numpy.uint16) * 257).save(deep, "PNG")
as_served = Image.open(deep).convert("RGB")
right = [content, text, {"xray": text}, base64.encodebytes(content).decode(), "data:image/png;base64," + text]
right += [bytearray(content), knee.convert("RGB"), knee.convert("RGBA"), {"image": Image.open(deep)}]
given, errors = [handler({"inputs": inputs}) for inputs in right], []
for wrong in (b"no image", "no base64!", as_served, knee.resize((16, 16)), None, {}):
    try:
        handler({"inputs": wrong})
    except ValueError as error:
        errors.append(str(error))
try:
    handler(content)  # not in an object
except ValueError as error:
    errors.append(str(error))
ours = [name for name in ("clip_koa", "modeling_clip_koa") if hasattr(sys.modules.get(name), "__path__")]
print(json.dumps([given, errors, ours]))
"""


def test_published_by_the_command_and_loaded_by_its_name(server, checkpoint, tmp_path):
    home = tmp_path / "home"
    pushed = _command(server, home, checkpoint, "anna/knees", "--tag", "v1", "--trained_on", "anna/xrays")
    assert pushed.returncode == 0, pushed.stderr
    assert "Published as anna/knees at revision" in pushed.stdout
    files = server.files("v1")
    assert "datasets: anna/xrays" in files["README.md"].decode()
    for content in (*files.values(), *(path.read_bytes() for path in home.rglob("*") if path.is_file())):
        assert TOKEN.encode() not in content and str(tmp_path).encode() not in content

    image = tmp_path / "knee.png"
    draw_knee(2, "L", 0, 32).save(image)
    online = {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0"}
    assert len(compare_probe(run_probe("anna/knees", [image], **online))) == 7

    # The handler stands on the release alone: not in the project's folder, and not with its packages.
    folder = tmp_path / "endpoint"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    handled = subprocess.run(
        [sys.executable, "-c", HANDLER, str(folder), str(image)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert handled.returncode == 0, handled.stderr
    graded, errors, ours = json.loads(handled.stdout.splitlines()[-1])
    of_bytes = graded[0]
    for grades in graded[1:-1]:
        assert grades == of_bytes and len(grades) == 5
    # Windowed from its percentiles, so not quite the same picture.
    assert dict_of(graded[-1]) == pytest.approx(dict_of(of_bytes), abs=0.05)
    reasons = ("the X-ray", "no base64", "16 bits sent as image", "at least 32", "bytes", "bytes", "an object")
    for error, reason in zip(errors, reasons, strict=True):
        assert reason in error and error.count("\n") == 0
    assert ours == []
    assert sum(grade["score"] for grade in of_bytes) == pytest.approx(1, abs=1e-5)
    assert [grade["score"] for grade in of_bytes] == sorted((grade["score"] for grade in of_bytes), reverse=True)


@pytest.mark.slow
def test_space_corpus_and_metric_are_published_the_same_way(server, tmp_path):
    home = tmp_path / "home"
    for arguments, expected in (
        (("anna/knees", "anna/page", "--space"), {"app.py", "clip_koa/webapp/page.py", "requirements.txt"}),
        (("dataset_script", "anna/xrays", "--dataset"), {"dataset_script/knee_xray.py", "LICENSE"}),
        (("metrics/kl_grading", "anna/kl_grading", "--metric"), {"kl_grading.py", "index.html"}),
    ):
        pushed = _command(server, home, *arguments)
        assert pushed.returncode == 0, pushed.stderr
        files = server.files("main")
        assert {"README.md", *expected} <= set(files) and files["README.md"].startswith(b"---")
        kind = "datasets" if "--dataset" in arguments else "spaces"
        assert any(path.startswith(f"/api/{kind}/{arguments[1]}/commit/") for _, path in server.log)
    assert _command(server, home, "elsewhere", "anna/xrays", "--dataset").returncode == 2


def test_a_space_holds_all_that_its_page_imports(tmp_path):
    build_space(tmp_path / "space", "anna/page", "anna/knees")
    ours = {"clip_koa", "modeling_clip_koa", "dataset_script", "metrics"}
    for path in (tmp_path / "space").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)][:1]
                if node.module in ours:  # from package import module
                    names = [f"{node.module}.{alias.name}" for alias in node.names if alias.name.islower()]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                if name.split(".")[0] in ours:
                    module = tmp_path / "space" / name.replace(".", "/")
                    assert module.with_suffix(".py").is_file() or module.is_dir(), f"{path} imports {name}"
    assert "models:\n- anna/knees\n" in (tmp_path / "space" / "README.md").read_text()


@pytest.mark.slow
def test_an_installed_package_says_what_it_cannot_publish_and_brings_its_licence(monkeypatch, tmp_path, capsys):
    """It has neither the page's pins nor the cards; and a release without a licence must not come of it."""
    monkeypatch.setattr(publish, "PROJECT", tmp_path)
    for kind in ("space", "dataset", "metric"):
        assert main(["publish", "anna/knees", "anna/page", f"--{kind}", "--dry_run", "--output", str(tmp_path)]) == 2
        told = capsys.readouterr().err
        assert f"--{kind} publishes files of the project" in told and len(told.splitlines()) == 1

    installed = tmp_path / "clip_koa-0.1.0.dist-info"
    (installed / "licenses").mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.4\nName: clip-koa\nVersion: 0.1.0\n")
    monkeypatch.setattr(plain_files, "__file__", str(tmp_path / "clip_koa" / "publishing" / "plain_files.py"))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ReleaseError, match="LICENSE is not there"):
        plain_files.copy_license(tmp_path / "copy")
    (installed / "licenses" / "LICENSE").write_bytes((ROOT / "LICENSE").read_bytes())
    plain_files.copy_license(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_what_fails_its_checks_does_not_stay(server, checkpoint, tmp_path):
    output = tmp_path / "release"
    config = json.loads((checkpoint / "config.json").read_text())
    config["id2label"]["0"] = "person 9001234"
    (checkpoint / "config.json").write_text(json.dumps(config))
    failed = _command(server, tmp_path / "home", checkpoint, "anna/knees", "--dry_run", "--output", output)
    assert failed.returncode == 2 and "9001234" in failed.stderr and not output.exists()
    assert not server.log

    (tmp_path / "evaluation").mkdir()
    figures = {
        "split": "validation",
        "about": {"weights": "0" * 64},
        "text": {},
        "text_flip_averaged": {},
        "linear": {},
    }
    (tmp_path / "evaluation" / "metrics.json").write_text(json.dumps(figures))
    other = _command(
        server, tmp_path / "home", checkpoint, "anna/knees", "--dry_run", "--output", output, "--evaluation",
        tmp_path / "evaluation",
    )  # fmt: skip
    assert other.returncode == 2 and "is of other weights" in other.stderr and not output.exists()


def test_a_home_at_the_root_is_no_secret(monkeypatch, tmp_path):
    """As in some containers; every file holds a slash. Nor is the name of whoever publishes under it."""
    monkeypatch.setenv("HOME", "/")
    monkeypatch.setenv("LOGNAME", "anna1234")
    monkeypatch.chdir(tmp_path)
    private = publish.private_of(publish.Publication("runs/best", "anna/knees"), tmp_path)
    assert "/" not in private and "//" not in private and f"{tmp_path}/" in private and "anna1234" in private
    own = publish.private_of(publish.Publication("runs/best", "anna1234/knees"), tmp_path)
    assert "anna1234" not in own


def test_tokens_of_the_environment_are_found_and_never_shown(monkeypatch, tmp_path):
    monkeypatch.setenv("MY_CLOUD_TOKEN", "plain-words-only")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nSee plain-words-only.\n")
    private = publish.private_of(publish.Publication("runs/best", "anna/knees"), tmp_path)
    with pytest.raises(ReleaseError, match="README.md holds the value of MY_CLOUD_TOKEN") as refused:
        check_folder(tmp_path, private=private)
    assert "plain-words" not in str(refused.value)


def test_a_token_is_not_shown_by_a_fault_nor_where_it_was_typed(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def fail(*_):
        raise ZeroDivisionError(f"Authorization: Bearer {TOKEN}")

    monkeypatch.setattr(publish, "build_metric", fail)
    arguments = ["publish", ROOT / "metrics/kl_grading", "anna/knees", "--metric"]
    assert main(arguments) == 2
    for given in ([*arguments[:2], TOKEN], [*arguments[:2], f"anna/{TOKEN}/x"]):
        assert main(given) == 2
    monkeypatch.undo()
    assert main([*arguments, "--message", f"with {TOKEN}"]) == 2
    shown = capsys.readouterr()
    assert TOKEN not in shown.out + shown.err
    assert "ZeroDivisionError" in shown.err and "--message holds an access token" in shown.err


def test_the_bytes_that_were_checked_are_those_that_are_uploaded(monkeypatch, tmp_path):
    """A file that changes after the check ends the upload, small or large."""
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "model.safetensors").write_bytes(WEIGHTS)
    files = check_folder(tmp_path)
    for held in (10**7, 0):
        monkeypatch.setattr(hub, "_HELD", held)
        for file in files:
            content = hub._content(tmp_path, file)
            kept = (tmp_path / file.name).read_bytes()
            assert isinstance(content, bytes) == bool(held) and hub._addition(file, content).path_in_repo == file.name
            (tmp_path / file.name).write_bytes(kept[:-1] + b"!")
            with pytest.raises(ReleaseError, match=f"{file.name} was changed after it was checked"):
                hub._addition(file, hub._content(tmp_path, file))
            if held:  # what was read before is what is sent
                with hub._addition(file, content).as_file() as sent:
                    assert sent.read() == kept
            (tmp_path / file.name).write_bytes(kept)
