"""A model that grades at once, real knees as films, and an archive."""

from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image

from clip_koa import RELEASED_MODEL
from clip_koa.training.checkpoints import save_model_folder
from dataset_script.films import compose_film
from dicom.pacs import Archive, Listener, radiograph
from modeling_clip_koa import CALIBRATION_FILE

pytest.importorskip("highdicom", reason="needs the extra pacs")
pytest.importorskip("pynetdicom", reason="needs the extra pacs")


@pytest.fixture(scope="session")
def tiny_model(tiny_start, tmp_path_factory) -> Path:
    """A tiny model that takes every X-ray as it is, with confidence sets."""
    folder = tmp_path_factory.mktemp("pacs-model") / "model"
    save_model_folder(folder, tiny_start.model, tiny_start.image_processor, tiny_start.tokenizer)
    (folder / CALIBRATION_FILE).write_text('{"thresholds": {"0.90": 0.9}}')
    return folder


@pytest.fixture(scope="session")
def released() -> Path:
    """The released model, which finds the knees of films."""
    if not (RELEASED_MODEL / "model.safetensors").exists():
        pytest.skip("the released model is not there")
    return RELEASED_MODEL


@pytest.fixture(scope="session")
def two_knees() -> bytes:
    """A film of the two knees of the examples that have no osteoarthritis, of an invented patient."""
    right, left = (Image.open(ROOT / "examples" / f"kl0_{side}.png") for side in ("right", "left"))
    return radiograph(compose_film(right, left, 1, width=1000).image, "film")


@pytest.fixture
def archive(tmp_path):
    """An archive that runs."""
    archive = Archive(tmp_path / "archive")
    archive.start()
    yield archive
    archive.stop()


@pytest.fixture
def listener(tmp_path, tiny_model, archive):
    """The listener before the archive; not started yet."""
    listener = Listener(tmp_path / "listener", tiny_model, archive.peer)
    yield listener
    listener.stop()
