"""Shared fixtures. Nothing in the tests reaches a network or writes outside pytest's temporary folders."""

import atexit
import contextlib
import copy
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

# Before any import of the libraries, which read these once. Subprocesses inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
for cache in ("HF_HOME", "CLIP_KOA_CACHE"):  # the second is of compiled networks
    os.environ[cache] = tempfile.mkdtemp(prefix="clip-koa-tests-")
    atexit.register(shutil.rmtree, os.environ[cache], ignore_errors=True)
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
# Under nohup or behind an `&` these are ignored, and processes that the tests start and stop would ignore them too.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# Test workers run side by side: more threads than this fight over the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from clip_koa.commands import main  # noqa: E402
from clip_koa.training.starting_points import SMALL_CONFIGURATIONS, load_starting_point  # noqa: E402
from clip_koa.training.tokenizer import build_prompt_tokenizer  # noqa: E402
from modeling_clip_koa import PROMPT_SETS, CLIPKOAConfig, CLIPKOAForImageClassification  # noqa: E402

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

ROOT = Path(__file__).parents[1]
VISION_WEIGHTS = ROOT / ".cache/vision-weights/vit_s_focus.onnx"

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")

TINY_TOWERS = {
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    },
    "projection_dim": 16,
}
TINY_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@contextlib.contextmanager
def largest_file(size):
    """Within it this process can write no file above `size` bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="session")
def tokenizer():
    return build_prompt_tokenizer(PROMPT_SETS["ensemble"], max_length=77)


@pytest.fixture
def make_model(tokenizer):
    """Builds a tiny CLIP-KOA with random weights; keyword arguments go to its config."""

    def make(prompts="ensemble", seed=0, **settings) -> CLIPKOAForImageClassification:
        text_config = {
            **TINY_TEXT,
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        torch.manual_seed(seed)
        config = CLIPKOAConfig(text_config=text_config, **TINY_TOWERS, prompts=PROMPT_SETS[prompts], **settings)
        model = CLIPKOAForImageClassification(config)
        model.set_prompts(config.prompts, tokenizer)
        return model

    return make


@pytest.fixture
def pixel_values():
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels():
    return torch.tensor([0, 1, 2, 3, 4, 2])


@pytest.fixture(scope="session")
def knee_xray_dir() -> Path:
    """The real X-rays; tests that need them are skipped where KNEE_XRAY_DIR is not set."""
    if not os.environ.get("KNEE_XRAY_DIR"):
        pytest.skip("KNEE_XRAY_DIR is not set")
    return Path(os.environ["KNEE_XRAY_DIR"])


@pytest.fixture
def run_python():
    """Runs a fresh Python process in the project's root, as a user does."""

    def run(*arguments, expect=0, cwd=ROOT, **environment) -> subprocess.CompletedProcess:
        result = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert result.returncode == expect, result.stdout + result.stderr
        return result

    return run


@pytest.fixture
def run_command(capsys, monkeypatch):
    """Runs `clip-koa` in the tests' own process, which spares the seconds that a fresh one needs to import."""

    def run(*arguments, expect=0, **environment) -> SimpleNamespace:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            status = main(arguments)
        printed = capsys.readouterr()
        assert status == expect, printed.out + printed.err
        return SimpleNamespace(stdout=printed.out, stderr=printed.err)

    return run


@pytest.fixture(autouse=True)
def no_accelerator_is_left_behind():
    """A command that runs in the tests' own process leaves one, of a precision that another may not have."""
    yield
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def tiny_start():
    """The `tiny` starting point of train.py."""
    size = SMALL_CONFIGURATIONS["tiny"]["vision_config"]["image_size"]
    assert size >= 32
    return load_starting_point("tiny", PROMPT_SETS["standard"], [])


@pytest.fixture
def image_processor(tiny_start):
    """The image processor of `make_model`'s models."""
    processor = copy.deepcopy(tiny_start.image_processor)
    side = TINY_TOWERS["vision_config"]["image_size"]
    processor.size, processor.crop_size = {"shortest_edge": side}, {"height": side, "width": side}
    return processor


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium, one for all tests: Playwright runs once in a process."""
    if not CHROMIUM:
        pytest.skip("needs chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()
