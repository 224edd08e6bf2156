"""What a grade depends on besides the X-ray: the model's weights, the code that reads and grades, the settings."""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from clip_koa.files import file_digest

# Of a model folder, what decides a grade.
_MODEL_FILES = (
    "*.safetensors", "*.onnx", "openvino_*.xml", "openvino_*.bin", "config.json", "preprocessor_config.json",
    "calibration.json",
)  # fmt: skip
_PROJECT = Path(__file__).parents[2]
_DIGITS = 16


def model_digest(name: str) -> str:
    """Digest of a model's weights, configuration and calibration, wherever it lies and whatever it is called.

    Args:
        name: model folder, or Hub id of one that is loaded already.
    """
    folder = Path(name)
    if not folder.is_dir():
        from transformers.utils import cached_file  # here: a folder is graded without transformers

        folder = Path(cached_file(name, "config.json")).parent
    return _digest(path for pattern in _MODEL_FILES for path in folder.glob(pattern))


def code_digest() -> str:
    """Digest of the code that reads and grades: another version may give an X-ray another grade, but need not."""
    return _digest(code_files())


def code_files() -> set[Path]:
    """What reads an X-ray, found by its imports, and what grades it."""
    reader, found = {_PROJECT / "dataset_script" / "radiograph.py"}, set()
    while left := reader - found:
        found |= left
        reader |= {path for file in left for path in _imported(file)}
    return found | set((_PROJECT / "modeling_clip_koa").glob("*.py"))


def _imported(file: Path) -> Iterator[Path]:
    """The modules beside a file that it imports, as `from dataset_script import dicom` or `… dataset_script.dicom`."""
    package = file.parent.name
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package:
            names = [node.module.split(".")[1]] if "." in node.module else [alias.name for alias in node.names]
            yield from (path for name in names if (path := file.with_name(f"{name}.py")).is_file())


def describe(**settings) -> str:
    """Settings as a table keeps them: `model=0123456789abcdef level=0.9`."""
    return " ".join(f"{name}={value}" for name, value in settings.items())


def read(made_by: str | None) -> dict[str, str]:
    """The settings that `describe` wrote, by name."""
    return dict(item.split("=", 1) for item in (made_by or "").split() if "=" in item)


def without_code(made_by: str | None) -> str:
    """What `describe` gave, without the code: rows of several versions may stand in one table."""
    return " ".join(item for item in (made_by or "").split() if not item.startswith("code="))


def _digest(files: Iterable[Path]) -> str:
    lines = "".join(f"{path.name} {file_digest(path)}\n" for path in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()[:_DIGITS]
