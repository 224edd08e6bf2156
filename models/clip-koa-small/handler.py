"""Grades X-rays on Inference Endpoints: bytes of a PNG, JPEG, TIFF or DICOM file in, grades with their scores out."""

import base64
import binascii
import io
import sys
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification


class EndpointHandler:
    """What Inference Endpoints start once and call for each request. Research only, no medical device.

    Args:
        path: the folder of this repository.
    """

    def __init__(self, path: str = ""):
        if path not in sys.path:
            sys.path.insert(0, path)  # for the reader of X-rays beside this file
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = AutoModelForImageClassification.from_pretrained(path, trust_remote_code=True)
        self.model = model.to(self.device).eval()
        self.image_processor = AutoImageProcessor.from_pretrained(path)

    @torch.inference_mode()
    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """Grades one X-ray.

        Args:
            data: `inputs`, the file's bytes, their base64, or a PIL image.

        Returns:
            For each grade its `label` and `score`, the likeliest first, both views averaged.

        Raises:
            ValueError: no X-ray, or one that cannot be read.
        """
        image = _read(data.get("inputs"))
        pixel_values = self.image_processor(image, return_tensors="pt")["pixel_values"].to(self.device)
        scores = self.model(pixel_values).logits.softmax(-1)[0].tolist()
        grades = [{"label": self.model.config.id2label[grade], "score": score} for grade, score in enumerate(scores)]
        return sorted(grades, key=lambda grade: -grade["score"])


def _read(inputs):
    from dataset_script.radiograph import read_radiograph  # beside this file, known once the handler has started

    if hasattr(inputs, "save"):  # the toolkit has opened an image already
        buffer = io.BytesIO()
        inputs.save(buffer, "PNG")
        inputs = buffer.getvalue()
    elif isinstance(inputs, str):
        try:
            inputs = base64.b64decode(inputs, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError("inputs is text that is no base64: send the file's bytes.") from error
    if not isinstance(inputs, bytes) or not inputs:
        raise ValueError("inputs must be the bytes of an X-ray file.")
    return read_radiograph(inputs, name="the X-ray").image
