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
        """Grades one X-ray.

        Args:
            data: `inputs`, the file's bytes, their base64 (also in lines, or as a data: address), a dictionary of
                one of these under any name, or a PIL image.

        Returns:
            For each grade its `label` and `score`, the likeliest first, both views averaged.

        Raises:
            ValueError: no X-ray, or one that cannot be read.
        """
        if not isinstance(data, dict):
            raise ValueError('The request must be an object, {"inputs": X-RAY}.')
        picture = _read(data.get("inputs"))  # upright, and bone bright
        scores = self.model.grade(picture, keep_polarity=True).probabilities
        grades = [{"label": self.model.config.id2label[grade], "score": score} for grade, score in enumerate(scores)]
        return sorted(grades, key=lambda grade: -grade["score"])


def _read(inputs) -> Image.Image:
    """The picture (mode L) of what was sent."""
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
        return picture
    if isinstance(inputs, str):
        inputs = _decode(inputs)
    if not isinstance(inputs, (bytes, bytearray)) or not inputs:
        raise ValueError("inputs must be the bytes of an X-ray file.")
    return read_radiograph(bytes(inputs), name="the X-ray").image


def _decode(text: str) -> bytes:
    """What base64 stands for, also in lines as `base64` writes it, or behind the `data:` that browsers put first."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:  # as are binascii.Error and the refusal of other letters
        raise ValueError("inputs is text that is no base64: send the base64 of the file's bytes.") from error
