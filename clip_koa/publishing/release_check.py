"""What a release may hold, and whether it loads: the checks before anything is uploaded."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open

from clip_koa.publishing.errors import ReleaseError

PROBE = Path(__file__).with_name("release_probe.py")
# Names, relative to the folder, that a release may hold; anything else is refused.
MODEL_FILES = (
    "README.md", "LICENSE", "config.json", "model.safetensors", "preprocessor_config.json", "processor_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt",
    "prompts_clip_koa.py", "configuration_clip_koa.py", "losses_clip_koa.py", "modeling_clip_koa.py",
    "tensors_clip_koa.py", "grader_clip_koa.py",
    "metrics.json", "calibration.json", "typicality.safetensors", "handler.py", "requirements.txt",
    "figures/*.png", "examples/*.png",
    "dataset_script/__init__.py", "dataset_script/radiograph.py", "dataset_script/pixels.py",
    "dataset_script/dicom*.py",
)  # fmt: skip
NEEDED_FILES = ("README.md", "config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json")
TOLERANCE = 1e-4

_TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")
_MACHINE_PATH = re.compile(
    r"(?<![\w.:/>~-])(?:/(?:home|root|tmp|work|mnt|data|Users|scratch|var|media|srv|workspace|content|private)/[\w.]"
    r"|[A-Za-z]:\\\\?[\w.])"
)
# The corpus names a person by seven digits, and an X-ray by these and a side.
_PERSON = re.compile(r"(?<![\w.-])\d{7}[LR]?(?![\w.])")
_PERSON_KEYS = {"person", "person_id", "people", "file", "files"}


def check_folder(folder: Path, allowed: tuple[str, ...] = MODEL_FILES, secrets: tuple[str, ...] = ()) -> list[Path]:
    """The files of a release, each looked into.

    Args:
        allowed: names that the folder may hold.
        secrets: strings that no file may hold: the token, paths of this machine.

    Raises:
        ReleaseError: a file that has no place there, or one with a token, a path, a person's id or a wrong format.
    """
    files = sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    for path in files:
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not path.is_file():
            raise ReleaseError(f"{name} is a link or no plain file: a release holds plain files only.")
        if not any(fnmatch(name, pattern) for pattern in allowed):
            raise ReleaseError(f"{name} has no place in a release: remove it.")
        _check_content(path, name, tuple(secret for secret in secrets if secret))
    return files


def _check_content(path: Path, name: str, secrets: tuple[str, ...]) -> None:
    content = path.read_bytes()
    for secret in secrets:
        if secret.encode() in content:
            raise ReleaseError(f"{name} holds a token or a path of this machine: build the release anew.")
    if path.suffix == ".safetensors":
        _check_text(name, json.dumps(_tensors_metadata(path, name)))
    elif path.suffix == ".png":
        _check_picture(path, name)
    else:
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ReleaseError(f"{name} is no text: a release holds text, PNG and safetensors.") from error
        # The project's own code and a vocabulary hold numbers that only look like ids.
        _check_text(name, text, people=path.suffix not in (".py",) and name not in ("tokenizer.json", "vocab.json"))
        if path.suffix == ".json":
            _check_json(name, text)


def _check_text(name: str, text: str, people: bool = True) -> None:
    if _TOKEN.search(text):
        raise ReleaseError(f"{name} holds an access token: revoke it, and build the release anew.")
    if found := _MACHINE_PATH.search(text):
        raise ReleaseError(f"{name} holds a path of a machine ({text[found.start() : found.start() + 40]!r}).")
    if people and (found := _PERSON.search(text)):
        raise ReleaseError(f"{name} holds {found[0]}, which looks like a person's id.")


def _check_json(name: str, text: str) -> None:
    try:
        values = [json.loads(text)]
    except json.JSONDecodeError as error:
        raise ReleaseError(f"{name} is not valid JSON: {error}.") from error
    if name == "tokenizer.json":
        return
    while values:
        value = values.pop()
        if isinstance(value, dict):
            for key, part in value.items():
                if key in _PERSON_KEYS and not isinstance(part, int | float):
                    raise ReleaseError(f"{name} has {key!r}: names of people and files stay at home.")
            values += value.values()
        elif isinstance(value, list):
            values += value
        elif name == "calibration.json" and isinstance(value, str) and re.search(r"[/\\]|\.png|\.dcm", value):
            raise ReleaseError(f"{name} holds {value!r}: it may hold no file's name.")


def _tensors_metadata(path: Path, name: str) -> dict:
    try:
        with safe_open(path, "pt") as tensors:
            return {"metadata": tensors.metadata(), "names": list(tensors.keys())}
    except (SafetensorError, OSError) as error:
        raise ReleaseError(f"{name} is no safetensors file: {error}.") from error


def _check_picture(path: Path, name: str) -> None:
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            picture.load()
            extra = set(picture.info) - {"dpi", "Software", "transparency", "gamma"}
    except (OSError, ValueError) as error:
        raise ReleaseError(f"{name} is no PNG picture: {error}.") from error
    if extra:
        raise ReleaseError(f"{name} carries metadata ({', '.join(sorted(extra))}): save it without.")


def run_probe(name: str, images: list[Path], python: str = sys.executable, **environment: str) -> dict:
    """What a fresh process with an empty cache finds on loading `name`; see `release_probe.py`.

    Raises:
        ReleaseError: it does not load; with the last line of what the process said.
    """
    with tempfile.TemporaryDirectory() as home:
        result = subprocess.run(
            [python, "-I", str(PROBE), name, *map(str, images)],
            cwd=home, capture_output=True, text=True,
            env={**os.environ, "HF_HOME": home, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_XET": "1", **environment},
        )  # fmt: skip
    if result.returncode:
        raise ReleaseError(f"The release does not load with {python}: {result.stderr.strip().splitlines()[-1][:300]}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def check_loading(folder: Path, expected: np.ndarray | None = None, python: str = sys.executable) -> dict[str, float]:
    """Loads a copy of the release in a fresh process, in every way that its card promises, and compares.

    Args:
        expected: the checkpoint's own flip-averaged logits of the examples, (N, K); None where they were rounded.

    Returns:
        For each way, the largest difference: of a logit or of a probability.

    Raises:
        ReleaseError: a way that loads another class, or whose result differs by more than 1e-4.
    """
    # The probe runs in a folder of its own.
    folder, python = folder.resolve(), os.path.abspath(shutil.which(python) or python)
    with tempfile.TemporaryDirectory(dir=folder.parent) as elsewhere:
        copy = shutil.copytree(folder, Path(elsewhere) / "moved", copy_function=_link)
        found = run_probe(str(copy), sorted((copy / "examples").glob("*.png")), python)
    return compare_probe(found, expected)


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
    pairs = {
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
