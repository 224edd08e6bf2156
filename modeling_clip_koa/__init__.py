"""CLIP-KOA: Kellgren-Lawrence grades of knee X-rays with CLIP. Research software, not a medical device.

This folder is what travels to the Hub with every checkpoint: flat, and importing only torch and transformers.
"""

from .configuration_clip_koa import CLIPKOAConfig
from .grader_clip_koa import (
    CALIBRATION_FILE,
    PRECISIONS,
    TYPICALITY_FILE,
    CalibrationError,
    CLIPKOAGrader,
    Explanation,
    Grade,
    XrayPreprocessor,
    bf16_is_fast,
)
from .losses_clip_koa import consistency_loss, soft_labels, symmetry_loss
from .modeling_clip_koa import CLIPKOAForImageClassification, CLIPKOAOutput
from .prompts_clip_koa import GRADE_LABELS, GRADE_MEANINGS, GRADE_NAMES, PROMPT_SETS

__all__ = [
    "CALIBRATION_FILE",
    "GRADE_LABELS",
    "GRADE_MEANINGS",
    "GRADE_NAMES",
    "PRECISIONS",
    "PROMPT_SETS",
    "TYPICALITY_FILE",
    "CLIPKOAConfig",
    "CLIPKOAForImageClassification",
    "CLIPKOAGrader",
    "CLIPKOAOutput",
    "CalibrationError",
    "Explanation",
    "Grade",
    "XrayPreprocessor",
    "bf16_is_fast",
    "consistency_loss",
    "soft_labels",
    "symmetry_loss",
]
