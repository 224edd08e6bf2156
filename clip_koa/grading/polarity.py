"""Whether a film shows bone bright or dark, which its knees tell: the reader of files judges it as that of a crop."""

from dataclasses import replace

from PIL import ImageOps

from dataset_script.radiograph import Radiograph
from modeling_clip_koa import Grade

LEAST_UNLIKE = 0.9  # knees of doubtful polarity that are less typical than so many others may be those of a negative
_CROP_ASPECT = 1.1  # a crop's longer side over its shorter one


def negative(radiograph: Radiograph) -> Radiograph:
    """The same with dark and bright exchanged."""
    return replace(radiograph, image=ImageOps.invert(radiograph.image), inverted=not radiograph.inverted)


def is_doubtful(radiograph: Radiograph) -> bool:
    """Whether the reader inverted what has not the shape of a crop."""
    return radiograph.inverted and max(radiograph.image.size) > _CROP_ASPECT * min(radiograph.image.size)


def unlikeness(grades: list[Grade]) -> float:
    """How unlike the training X-rays the least typical of some knees is, 0..1."""
    return max((grade.atypicality or 0.0 for grade in grades), default=1.0)
