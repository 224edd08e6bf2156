"""The pixel functions of the model's own code, under one name wherever the reader of X-rays lies."""

from pathlib import Path

if Path(__file__).parents[1].joinpath("preprocessing_clip_koa.py").is_file():
    # A release: its code lies flat beside this folder, and another version of it may be installed.
    from preprocessing_clip_koa import *  # noqa: F403
else:
    from modeling_clip_koa.preprocessing_clip_koa import *  # noqa: F403
