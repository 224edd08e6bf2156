"""Fits what finds the knees of a film (`modeling_clip_koa/localisation_clip_koa.py`) to training X-rays."""
