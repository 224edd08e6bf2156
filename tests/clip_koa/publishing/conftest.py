"""A checkpoint to publish."""

import pytest
from transformers import CLIPImageProcessor


@pytest.fixture
def checkpoint(make_model, tokenizer, tmp_path):
    """A tiny model folder."""
    folder = tmp_path / "run" / "best"
    make_model(prompts="standard").save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
