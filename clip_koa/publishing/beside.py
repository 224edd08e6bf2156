"""What is published beside a model: a Space with the page, the corpus's card and builder, the metric."""

from pathlib import Path

from clip_koa.publishing.plain_files import copy_plain

PROJECT = Path(__file__).parents[2]
# Folders and files of the project that each is made of, and names that its release may hold.
_PAGE = (
    "app.py", "LICENSE", "clip_koa/__init__.py", "clip_koa/grading/__init__.py", "clip_koa/grading/grader.py",
    "clip_koa/grading/backends.py", "clip_koa/grading/openvino_network.py", "clip_koa/grading/openvino_cache.py",
    "clip_koa/grading/networks.py", "clip_koa/grading/provenance.py",
    "clip_koa/grading/onnx_network.py", "clip_koa/grading/grade_table.py", "clip_koa/grading/model_loading.py",
    "clip_koa/grading/pairs.py", "clip_koa/grading/polarity.py",
    "clip_koa/grading/precision.py", "clip_koa/grading/sources.py", "clip_koa/files.py", "clip_koa/locks.py",
    "clip_koa/threads.py",
    "clip_koa/memory.py", "clip_koa/released.py", "clip_koa/commands/__init__.py", "clip_koa/commands/page.py",
    "clip_koa/webapp/*.py", "clip_koa/webapp/texts.yaml", "clip_koa/webapp/templates/*", "clip_koa/webapp/static/*",
    "modeling_clip_koa/*.py", "dataset_script/__init__.py", "dataset_script/exit_status.py",
    "dataset_script/radiograph.py", "dataset_script/pixels.py", "dataset_script/dicom*.py",
    "dataset_script/listing.py", "dataset_script/sniffing.py", "dataset_script/files.py",
    "examples/kl[0-4]_left.png", "examples/kl[0-4]_right.png", "examples/ATTRIBUTION.md",
)  # fmt: skip
_REQUIREMENTS = (
    "torch", "transformers", "safetensors", "pillow", "numpy", "pydicom", "Jinja2", "PyYAML", "fpdf2", "matplotlib",
    "pyarrow", "typer",
)  # fmt: skip
SPACE_FILES = ("README.md", "requirements.txt", *_PAGE)
METRIC_FILES = ("README.md", "LICENSE", "__init__.py", "index.html", "kl_grading.py", "paired.py", "requirements.txt")
DATASET_FILES = ("README.md", "LICENSE", "preprocessing_clip_koa.py", "dataset_script/*.py")

_SPACE_CARD = """---
title: {title}
emoji: 🦵
colorFrom: blue
colorTo: gray
sdk: gradio
sdk_version: {gradio}
app_file: app.py
pinned: false
license: apache-2.0
models:
- {model}
short_description: Grades knee osteoarthritis on X-rays. Research only.
---

# {title}

Grades knee X-rays on the Kellgren-Lawrence scale with [{model}](https://huggingface.co/{model}), and shows how sure it
is and what it leans on. The same page runs on a computer of one's own, without a network: `clip-koa page`.

> **Research only.** This is not a medical device. Its grades must not guide the care of patients. Do not upload X-rays
> of patients to a computer that is not yours.
"""


def build_space(folder: Path, repo_id: str, model: str) -> None:
    """Writes the Space that runs `app.py` on a published model.

    Args:
        model: its Hub id; the page finds it in the card's `models`.

    Raises:
        ReleaseError: a file of the project that is a link.
    """
    folder.mkdir()
    _copy(folder, _PAGE)
    pins = dict(line.split("==") for line in (PROJECT / "constraints.txt").read_text().split() if "==" in line)
    pins = {name.lower(): version for name, version in pins.items()}
    lines = [f"{name}=={pins[name.lower()]}" for name in _REQUIREMENTS]
    (folder / "requirements.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    card = _SPACE_CARD.format(title=repo_id.split("/")[-1], gradio=pins["gradio"], model=model)
    (folder / "README.md").write_text(card, encoding="utf-8")


def build_metric(folder: Path) -> None:
    """Writes the metric as `evaluate.load("USER/NAME")` takes it.

    Raises:
        ReleaseError: a file of the project that is a link.
    """
    folder.mkdir()
    for name in METRIC_FILES:
        copy_plain(PROJECT if name == "LICENSE" else PROJECT / "metrics" / "kl_grading", name, folder / name)


def build_dataset(folder: Path) -> None:
    """Writes the corpus's card and builder, without any X-ray.

    Raises:
        ReleaseError: a file of the project that is a link.
    """
    folder.mkdir()
    _copy(folder, ("LICENSE", "dataset_script/*.py"))
    copy_plain(PROJECT / "modeling_clip_koa", "preprocessing_clip_koa.py", folder / "preprocessing_clip_koa.py")
    card = (PROJECT / "dataset_script" / "README.md").read_text(encoding="utf-8")
    card = card.replace("[docs/corpus.md](../docs/corpus.md)", "docs/corpus.md of the project")
    (folder / "README.md").write_text(_DATASET_METADATA + card, encoding="utf-8")


_DATASET_METADATA = """---
pretty_name: Knee X-rays by Kellgren-Lawrence grade (builder, without X-rays)
license: apache-2.0
task_categories:
- image-classification
tags:
- medical
- radiography
- knee
- osteoarthritis
viewer: false
---

"""


def _copy(folder: Path, patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        for source in sorted(PROJECT.glob(pattern)):
            name = source.relative_to(PROJECT)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            copy_plain(PROJECT, str(name), folder / name)
