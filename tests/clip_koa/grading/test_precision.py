"""Grading in bf16: nearly the same grades, also for towers that bear no rounding of their positions."""

import pytest
import torch

from clip_koa.grading.grader import Grader
from clip_koa.grading.precision import bf16_is_fast
from clip_koa.training.checkpoints import save_model_folder
from clip_koa.training.tokenizer import build_prompt_tokenizer
from dataset_script.synthetic import draw_knee
from modeling_clip_koa import PROMPT_SETS, CLIPKOAForImageClassification

IMAGES = [draw_knee(number, "L", number, 96) for number in range(4)]


@pytest.fixture(scope="module")
def folder(tiny_start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    save_model_folder(folder, tiny_start.model, tiny_start.image_processor, tiny_start.tokenizer)
    return folder


def _model(folder, precision):
    return Grader(str(folder), precision=precision).model


def test_bf16_gives_nearly_the_same(folder):
    whole, fast = _model(folder, "fp32"), _model(folder, "bf16")
    assert fast.visual_projection.weight.dtype == torch.bfloat16
    for one, other in zip(whole.grade(IMAGES), fast.grade(IMAGES), strict=True):
        assert one.probabilities != other.probabilities
        assert one.probabilities == pytest.approx(other.probabilities, abs=0.03)
    assert torch.isfinite(fast.explain(IMAGES[0]).heat_map).all()
    expected = torch.bfloat16 if bf16_is_fast("cpu") else torch.float32
    assert _model(folder, "auto").visual_projection.weight.dtype == expected
    with pytest.raises(ValueError, match="no precision 'int4': use one of fp32"):
        _model(folder, "int4")


def test_bf16_bears_positions_far_above_what_tells_tokens_apart(folder, tmp_path):
    """As a tower has them that started from DINOv2: a constant in all, which the first layernorm takes off again."""
    model = CLIPKOAForImageClassification.from_pretrained(folder)
    tower = model.vision_model
    constant = torch.linspace(-1, 1, tower.embeddings.embed_dim)
    constant = 200 * (constant - constant.mean()) / constant.std()
    with torch.no_grad():
        tower.embeddings.position_embedding.weight += constant
        tower.pre_layrnorm.weight.fill_(200.0)
        tower.pre_layrnorm.bias.copy_(-constant)
    tokenizer = build_prompt_tokenizer(PROMPT_SETS["standard"], 77)
    save_model_folder(tmp_path / "far", model, model.image_processor, tokenizer)
    whole, fast = (_model(tmp_path / "far", kind) for kind in ("fp32", "bf16"))
    for one, other in zip(whole.grade(IMAGES), fast.grade(IMAGES), strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=0.03)
