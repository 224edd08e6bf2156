"""Grades X-rays on Inference Endpoints: a PNG, JPEG, WebP, TIFF, BMP or DICOM file in, grades with their scores out.

The server opens what is sent as image/* itself and turns it into 8-bit colour before it comes here, which destroys an
X-ray of 16 bits. Such ones, and DICOM files, go as base64 in JSON: {"inputs": {"xray": "..."}}.
"""

import base64
import sys
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageClassification

# The share of white pixels that tells a picture whose deeper values were cut off at 255.
_SATURATED = 0.95


class EndpointHandler:
    """What Inference Endpoints start once and call for each request. Research only, no medical device.

    Args:
        path: the folder of this repository.
    """

    def __init__(self, path: str = ""):
        if path not in sys.path:
            sys.path.insert(0, path)  # for the reader of X-rays beside this file
        model = AutoModelForImageClassification.from_pretrained(path, trust_remote_code=True)
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu")

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """Grades the knee of an X-ray, or both knees of a film.

        Args:
            data: `inputs`, the file's bytes, their base64 (also in lines, or as a data: address), a dictionary of
                one of these under any name, or a PIL image; and `parameters`, which may have `framing`: "auto" finds
                the knees, "as_is" takes the X-ray as one that is cropped to a knee.

        Returns:
            For each grade its `label` and `score`, the likeliest first, both views averaged. Where a knee was cut out
            of the X-ray, each entry also has its `side` ("R", "L" or ""), `side_assumed` and `box` (left, top, right,
            bottom in pixels); where something limits the grade, a `warning`. Of two knees the right one's grades come
            first, then the left one's. A knee of two that has no grade has one entry, whose label says why.

        Raises:
            ValueError: no X-ray, one that cannot be read, other parameters, or an X-ray in which no knee has a grade.
        """
        if not isinstance(data, dict):
            raise ValueError('The request must be an object, {"inputs": X-RAY}.')
        framing = _framing(data.get("parameters"))
        picture, laterality, keep_polarity = _read(data.get("inputs"))  # upright, and bone bright
        if framing == "as_is" or not self.model.can_find_knees:
            knees = [self.model.grade(picture, keep_polarity=True)]
        else:
            sides = laterality if laterality in ("L", "R") else ""
            knees = self.model.grade_film(picture, keep_polarity=keep_polarity, sides=sides)
        if not knees:
            raise ValueError(
                "No knee seen from the front was found in the X-ray. One that is cropped to a knee is graded as it is "
                'with "parameters": {"framing": "as_is"}.'
            )
        if all(knee.refusal for knee in knees):
            raise ValueError(knees[0].refusal)
        return [entry for knee in knees for entry in self._entries(knee, picture.size)]

    def _entries(self, knee, size: tuple[int, int]) -> list[dict[str, Any]]:
        """A knee's part of the answer."""
        known = {}
        if knee.box and knee.box != (0, 0, *size):
            known = {"side": knee.side, "side_assumed": knee.side_assumed, "box": list(knee.box)}
        if knee.refusal:
            return [{"label": f"not graded: {knee.refusal}", "score": 1.0, **known}]
        if knee.warning:
            known["warning"] = knee.warning
        labels = self.model.config.id2label
        grades = [{"label": labels[grade], "score": score, **known} for grade, score in enumerate(knee.probabilities)]
        return sorted(grades, key=lambda grade: -grade["score"])


def _framing(parameters) -> str:
    """The one parameter that is read; clients send others."""
    if not isinstance(parameters, dict | None):
        raise ValueError('parameters must be an object: {"framing": "auto"} or {"framing": "as_is"}.')
    framing = (parameters or {}).get("framing", "auto")
    if framing not in ("auto", "as_is"):
        raise ValueError(f'framing={framing!r}: use "auto" or "as_is".')
    return framing


def _read(inputs) -> tuple[Image.Image, str | None, bool]:
    """The picture (mode L) of what was sent, the side that its file tells, whether the file states its polarity."""
    # Beside this file, known once the handler has started.
    from dataset_script.pixels import read_picture
    from dataset_script.radiograph import read_radiograph

    if isinstance(inputs, dict) and len(inputs) == 1:
        inputs = next(iter(inputs.values()))
    if isinstance(inputs, Image.Image):  # the server has opened it
        picture, _ = read_picture(inputs, name="The X-ray")
        if picture.histogram()[255] > _SATURATED * picture.width * picture.height:
            raise ValueError(
                'The X-ray is white all over, as 16 bits sent as image/* are: send JSON, {"inputs": {"xray": BASE64}}.'
            )
        return picture, None, False
    if isinstance(inputs, str):
        inputs = _decode(inputs)
    if not isinstance(inputs, (bytes, bytearray)) or not inputs:
        raise ValueError("inputs must be the bytes of an X-ray file.")
    radiograph = read_radiograph(bytes(inputs), name="the X-ray")
    return radiograph.image, radiograph.laterality, radiograph.is_dicom


def _decode(text: str) -> bytes:
    """What base64 stands for, also in lines as `base64` writes it, or behind the `data:` that browsers put first."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:  # as are binascii.Error and the refusal of other letters
        raise ValueError("inputs is text that is no base64: send the base64 of the file's bytes.") from error
