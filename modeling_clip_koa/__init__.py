"""CLIP-KOA: Kellgren-Lawrence grades of knee X-rays with CLIP. Research software, not a medical device.

This folder is what travels to the Hub with every checkpoint: flat, and importing only torch, transformers, NumPy and
Pillow. A name is imported when it is first asked for (PEP 562), so that reading X-rays does not wait for torch.
"""

from importlib import import_module

_NAMES = {
    "appearance_clip_koa": ("WAYS",),
    "calibration_clip_koa": ("CALIBRATION_FILE", "TYPICALITY_FILE", "CalibrationError"),
    "configuration_clip_koa": ("CLIPKOAConfig",),
    "explanation_clip_koa": ("Explanation",),
    "grading_clip_koa": ("Grade",),
    "localisation_clip_koa": ("LOCALISATION_FILE", "Knee", "LocalisationError"),
    "losses_clip_koa": ("consistency_loss", "soft_labels", "symmetry_loss"),
    "modeling_clip_koa": ("CLIPKOAForImageClassification", "CLIPKOAGrader", "CLIPKOAOutput"),
    "preprocessing_clip_koa": ("CLIPKOAError", "XrayPreprocessor"),
    "prompts_clip_koa": ("GRADE_LABELS", "GRADE_MEANINGS", "GRADE_NAMES", "PROMPT_SETS"),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
