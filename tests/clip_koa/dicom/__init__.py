"""Tests of the page. A package, so that its conftest.py does not hide that of the folder above."""
