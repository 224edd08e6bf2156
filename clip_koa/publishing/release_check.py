"""What a release may hold, and whether it loads: the checks before anything is uploaded."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from clip_koa.grading.onnx_network import RELEASE_FILES
from clip_koa.publishing.content_check import CheckedFile, check_file, check_known_file
from clip_koa.publishing.errors import ReleaseError
from clip_koa.publishing.forms import redact
from clip_koa.publishing.private import is_token
from dataset_script.synthetic import draw_knee
from modeling_clip_koa import GRADE_LABELS

PROBE = Path(__file__).with_name("release_probe.py")
CARD_SPLITS = ("train", "validation", "test", "auto_test")
REPORT_PICTURES = ("reliability", "roc", "flip_scatter")  # of a report, for each split
CARD_PICTURES = (*REPORT_PICTURES, "confusion_matrix", "recall")  # the last two are drawn for the card
# Names, relative to the folder, that a release may hold; anything else is refused.
MODEL_FILES = (
    "README.md", "LICENSE", "config.json", "model.safetensors", "preprocessor_config.json", "processor_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt",
    "prompts_clip_koa.py", "configuration_clip_koa.py", "losses_clip_koa.py", "modeling_clip_koa.py",
    "preprocessing_clip_koa.py", "tensors_clip_koa.py", "calibration_clip_koa.py", "explanation_clip_koa.py",
    "grading_clip_koa.py", "transformers4_clip_koa.py", "appearance_clip_koa.py", "frames_clip_koa.py",
    "localisation_clip_koa.py", "metrics.json", "calibration.json", "localisation.safetensors",
    "typicality.safetensors", "handler.py", "requirements.txt",
    "error_groups.json", "figures/learning_curves.png", "figures/examples.png",
    *(f"figures/{picture}_{split}.png" for picture in CARD_PICTURES for split in CARD_SPLITS),
    "examples/kl[0-4]_left.png", "examples/kl[0-4]_right.png", "examples/ATTRIBUTION.md",
    "dataset_script/__init__.py", "dataset_script/radiograph.py", "dataset_script/pixels.py",
    "dataset_script/dicom*.py", *RELEASE_FILES.values(),
)  # fmt: skip
NEEDED_FILES = ("README.md", "config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json")
TOLERANCE = 1e-4


def check_folder(
    folder: Path, allowed: tuple[str, ...] = MODEL_FILES, private: Mapping[str, str] | None = None,
    known: Mapping[str, str] | None = None,
) -> list[CheckedFile]:  # fmt: skip
    """The files of a release, each looked into, in the order of their names.

    Args:
        allowed: names that the folder may hold.
        private: what no file may hold, and what that is: the token, paths of this machine.
        known: SHA-256 by name of files that were made or checked as the release was built; they are not looked into.

    Raises:
        ReleaseError: a file that has no place there, a link, or one with something that `FORMS` lists or that is
            damaged.
    """
    checked = []
    for path in sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not path.is_file():
            raise ReleaseError(f"{name} is a link or no plain file: a release holds plain files only.")
        if not any(_matches(name, pattern) for pattern in allowed):
            raise ReleaseError(f"{name} has no place in a release: remove it.")
        if known and name in known:
            checked.append(check_known_file(folder, name, private or {}, known[name]))
        else:
            checked.append(check_file(folder, name, private or {}))
    return checked


def _matches(name: str, pattern: str) -> bool:
    """Whether a name is that of a pattern, whose * stands for no folder."""
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def run_probe(
    name: str, images: list[Path], python: str = sys.executable, place: Path | None = None, **environment: str
) -> dict:
    """What a fresh process with an empty cache and no token finds on loading `name`; see `release_probe.py`.

    Args:
        place: the folder that the cache lies in meanwhile; default: the system's.

    Raises:
        ReleaseError: it does not load; with the last line of what the process said.
    """
    inherited = {key: value for key, value in os.environ.items() if not is_token(key)}
    with tempfile.TemporaryDirectory(dir=place) as home:
        result = subprocess.run(
            [python, "-I", str(PROBE), name, *map(str, images)],
            cwd=home, capture_output=True, text=True,
            env={**inherited, "HF_HOME": home, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_XET": "1", **environment},
        )  # fmt: skip
    try:
        if result.returncode == 0:
            return json.loads(result.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        pass
    reason = (result.stderr.strip() or f"it ended with status {result.returncode}").splitlines()[-1]
    raise ReleaseError(f"The release does not load with {python}: {redact(reason)[:300]}")


def check_loading(folder: Path, expected: np.ndarray | None = None, python: str = sys.executable) -> dict[str, float]:
    """Loads a copy of the release in a fresh process, in every way that its card promises, and compares.

    Args:
        expected: the checkpoint's own flip-averaged logits of `draw_probes`, (N, K); None where they were rounded.

    Returns:
        For each way, the largest difference: of a logit or of a probability.

    Raises:
        ReleaseError: a way that loads another class, or whose result differs by more than 1e-4.
    """
    # The probe runs in a folder of its own.
    folder, python = folder.resolve(), os.path.abspath(shutil.which(python) or python)
    with tempfile.TemporaryDirectory(dir=folder.parent) as elsewhere:
        copy = shutil.copytree(folder, Path(elsewhere) / "moved", copy_function=_link)
        size = json.loads((copy / "config.json").read_text(encoding="utf-8"))["vision_config"]["image_size"]
        found = run_probe(str(copy), draw_probes(Path(elsewhere), size), python, Path(elsewhere))
    return compare_probe(found, expected)


def draw_probes(folder: Path, size: int) -> list[Path]:
    """Draws the X-rays on which loading is compared, one of each grade, into a folder.

    Args:
        size: that the model reads, so that no way to load it has to shrink them.
    """
    paths = [folder / f"probe_{grade}.png" for grade in range(len(GRADE_LABELS))]
    for grade, path in enumerate(paths):
        draw_knee(grade, "LR"[grade % 2], (7, grade), max(size, 32), overlap=0).save(path)
    return paths


def compare_probe(found: dict, expected: np.ndarray | None = None) -> dict[str, float]:
    """Largest difference of each way in what a probe found; raises as `check_loading` does."""
    classes = {
        "auto_model": "CLIPKOAForImageClassification",
        "auto_classifier": "CLIPKOAForImageClassification",
        "pipeline": "CLIPForImageClassification",
        "zero_shot": "CLIPModel",
        "clip": "CLIPModel",
    }
    for way, expected_class in classes.items():
        if found[way]["class"] != expected_class:
            raise ReleaseError(f"{way}: the release loads as {found[way]['class']}, not as {expected_class}.")
    text = np.array(found["text"])
    exponents = np.exp(text - text.max(-1, keepdims=True))
    reference = np.array(found["auto_model"]["logits"]) if expected is None else expected
    averaged = np.exp(reference - reference.max(-1, keepdims=True))
    averaged /= averaged.sum(-1, keepdims=True)
    pairs = {
        "AutoModel.grade": (found["auto_model"]["graded"], averaged),
        "AutoModelForImageClassification.grade": (found["auto_classifier"]["graded"], averaged),
        "AutoModel": (found["auto_model"]["logits"], reference),
        "AutoModelForImageClassification": (found["auto_classifier"]["logits"], reference),
        "image-classification": (found["pipeline"]["scores"], found["linear"]),
    }
    if found["one_prompt_a_grade"]:  # an average of several prompts has no place in stock zero-shot classification
        pairs["CLIPModel"] = (found["clip"]["logits"], text)
        pairs["zero-shot-image-classification"] = (
            found["zero_shot"]["scores"],
            exponents / exponents.sum(-1, keepdims=True),
        )
    differences = {way: float(np.abs(np.array(one) - np.array(two)).max()) for way, (one, two) in pairs.items()}
    for way, difference in differences.items():
        if not difference <= TOLERANCE:
            raise ReleaseError(f"{way}: the release differs by {difference:.2g}, more than {TOLERANCE:g}.")
    return differences


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target
