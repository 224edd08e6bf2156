"""Tests of `clip_koa.dicom`. A package, so that its conftest.py does not hide that of the folder above."""
