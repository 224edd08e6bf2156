"""What a grade depends on besides the X-ray: the model's weights, the code that reads and grades, the settings."""

import hashlib
from pathlib import Path

from transformers.utils import cached_file

from clip_koa.files import file_digest

# Of a model folder, what decides a grade.
_MODEL_FILES = ("*.safetensors", "*.onnx", "config.json", "preprocessor_config.json", "calibration.json")
_PROJECT = Path(__file__).parents[2]
# What reads an X-ray and grades it.
_CODE = (
    "dataset_script/radiograph.py",
    "dataset_script/pixels.py",
    "dataset_script/dicom.py",
    "modeling_clip_koa/*.py",
)
_DIGITS = 16


def model_digest(name: str) -> str:
    """Digest of a model's weights, configuration and calibration, wherever it lies and whatever it is called.

    Args:
        name: model folder, or Hub id of one that is loaded already.
    """
    folder = Path(name) if Path(name).is_dir() else Path(cached_file(name, "config.json")).parent
    return _digest(folder, _MODEL_FILES)


def code_digest() -> str:
    """Digest of the code that decides a grade: another version may read an X-ray otherwise."""
    return _digest(_PROJECT, _CODE)


def describe(**settings) -> str:
    """Settings as a table keeps them: `model=0123456789abcdef level=0.9`."""
    return " ".join(f"{name}={value}" for name, value in settings.items())


def _digest(folder: Path, patterns: tuple[str, ...]) -> str:
    files = sorted(path for pattern in patterns for path in folder.glob(pattern))
    lines = "".join(f"{path.name} {file_digest(path)}\n" for path in files)
    return hashlib.sha256(lines.encode()).hexdigest()[:_DIGITS]
