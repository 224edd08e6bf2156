"""The real X-rays that a release shows, and what its model says of them."""

from pathlib import Path

import numpy as np
import torch

from clip_koa.publishing.plain_files import copy_plain
from clip_koa.reporting import pictures
from clip_koa.reporting.page import save_picture
from dataset_script.examples import FOLDER as EXAMPLES
from dataset_script.examples import GRADES, SIDES, example_name
from dataset_script.radiograph import read_radiograph
from modeling_clip_koa import XrayPreprocessor

PICTURE = "figures/examples.png"


def add_examples(folder: Path) -> list[Path]:
    """Copies the project's real examples and their attribution, where they lie beside the code; gives the X-rays."""
    if not EXAMPLES.is_dir():
        return []
    folder.mkdir()
    names = [example_name(grade, side) for side in SIDES for grade in GRADES]
    found = [folder / name for name in names if copy_plain(EXAMPLES, name, folder / name)]
    copy_plain(EXAMPLES, "ATTRIBUTION.md", folder / "ATTRIBUTION.md")
    return found


@torch.no_grad()
def score_examples(model, image_processor, files: list[Path]) -> dict[str, list[float]]:
    """For each file's name the linear head's probabilities (K,), as the widget's pipeline gives them."""
    if not files:
        return {}
    pixel_values = XrayPreprocessor(image_processor)([read_radiograph(file).image for file in files])
    scores = model(pixel_values, flip_average=False).classifier_logits.softmax(-1)
    return dict(sorted(zip([file.name for file in files], scores.tolist(), strict=True)))


def draw_examples(model, files: list[Path], folder: Path) -> None:
    """Draws the picture that a card begins with: the X-rays under heat maps, and the grades of both views.

    Args:
        model: with its image processor.
        files: what `add_examples` gives.
        folder: the release, in which `PICTURE` is written anew.
    """
    if not files:
        return
    images = [read_radiograph(file).image for file in files]
    with torch.no_grad():  # not `model.grade`, which reads the calibration, and this stands on the weights alone
        shares = model(model.beside.preprocess(images), flip_average=True).logits.softmax(-1).tolist()
    maps = []
    for image, row in zip(images, shares, strict=True):
        explanation = model.explain(image, grade=int(np.argmax(row)), keep_polarity=True)
        maps.append(np.asarray(explanation.overlay().convert("RGB")))
    (folder / PICTURE).parent.mkdir(exist_ok=True)
    save_picture(
        folder / PICTURE, "", "", pictures.graded_examples,
        maps, [_short_title(file.name) for file in files], shares,
    )  # fmt: skip


def title_of(name: str) -> str:
    """Such as "Left knee, KL2 in the data set" for kl2_left.png."""
    grade, side = Path(name).stem.split("_")
    return f"{side.capitalize()} knee, {grade.upper()} in the data set"


def _short_title(name: str) -> str:
    """Such as "left knee, data set: KL2" for kl2_left.png."""
    grade, side = Path(name).stem.split("_")
    return f"{side} knee, data set: {grade.upper()}"
