"""Grading: running a model on X-rays and measuring it."""
