"""A DINOv2 vision tower under CLIP's names gives DINOv2's features."""

import pytest
import torch
import torch.nn.functional as F
from conftest import VISION_WEIGHTS
from transformers import CLIPVisionConfig, CLIPVisionModel, Dinov2Config, Dinov2Model

from clip_koa.training import dinov2_vision
from clip_koa.training.dinov2_vision import dinov2_to_clip_vision, read_dinov2_onnx
from clip_koa.training.starting_points import IMAGENET_MEAN, IMAGENET_STD, build_image_processor
from dataset_script.synthetic import draw_knee


def _xrays(size: int, seeds: range) -> torch.Tensor:
    knees = [draw_knee(seed % 5, "LR"[seed % 2], seed, size) for seed in seeds]
    return build_image_processor(size, IMAGENET_MEAN, IMAGENET_STD)(knees, return_tensors="pt")["pixel_values"]


@torch.no_grad()
def _cosines(dinov2: Dinov2Model, num_attention_heads: int, image_size: int) -> tuple[float, float]:
    """Lowest cosine between both towers' class features and patch features on unseen X-rays."""
    state = {name: value for name, value in dinov2.state_dict().items() if name != "embeddings.mask_token"}
    config, weights = dinov2_to_clip_vision(state, _xrays(image_size, range(48)), num_attention_heads)
    clip = CLIPVisionModel(CLIPVisionConfig(**config)).eval()
    clip = getattr(clip, "vision_model", clip)  # transformers 4 wraps the tower once more
    incompatible = clip.load_state_dict(weights, strict=False)
    assert incompatible.unexpected_keys == []
    assert [key for key in incompatible.missing_keys if "position_ids" not in key] == []
    unseen = _xrays(image_size, range(1000, 1008))
    expected, got = dinov2(unseen), clip(unseen)
    patches = clip.post_layernorm(got.last_hidden_state[:, 1:])
    return (
        F.cosine_similarity(expected.pooler_output, got.pooler_output).min().item(),
        F.cosine_similarity(expected.last_hidden_state[:, 1:], patches, dim=-1).min().item(),
    )


@pytest.mark.parametrize("hidden_size, layers, heads, table", [(48, 2, 3, 112), (64, 3, 4, 224), (96, 1, 6, 70)])
def test_random_towers_of_several_sizes(monkeypatch, hidden_size, layers, heads, table):
    """Towers this narrow have no direction in which tokens hardly vary: a larger constant stands in for it."""
    monkeypatch.setattr(dinov2_vision, "CONSTANT_RATIO", 1000.0)
    torch.manual_seed(hidden_size)
    config = Dinov2Config(
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=table,
        patch_size=14,
        layerscale_value=0.7,
        initializer_range=0.1,
    )
    dinov2 = Dinov2Model(config).eval()
    with torch.no_grad():  # biases start at zero, where a mistake with them would not show
        for name, parameter in dinov2.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
        # A trained class token is about as large as the patches, a new one far smaller.
        dinov2.embeddings.cls_token.normal_(std=2.0)
    class_token, patches = _cosines(dinov2, heads, image_size=112)
    assert class_token > 0.999 and patches > 0.99


def _old_name(name: str) -> str:
    """The name that transformers 4 and published files have for a key of transformers 5's `Dinov2Model`."""
    for old, new in dinov2_vision._ATTENTION_NAMES.items():
        name = name.replace(new, old)
    return name


def test_names_of_published_files_are_read_too():
    config = Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=56)
    state = Dinov2Model(config).state_dict()
    renamed = {_old_name(name): value for name, value in state.items()}
    sample = _xrays(56, range(4))
    _, expected = dinov2_to_clip_vision(state, sample, 2)
    _, got = dinov2_to_clip_vision(renamed, sample, 2)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_other_architectures_are_refused():
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=56, use_swiglu_ffn=True
    )
    with pytest.raises(ValueError, match="no plain DINOv2"):
        dinov2_to_clip_vision(Dinov2Model(config).state_dict(), torch.zeros(2, 3, 56, 56))


def test_files_that_hold_no_backbone_are_refused(tmp_path):
    with pytest.raises(ValueError, match="make vision-weights"):
        read_dinov2_onnx(tmp_path / "missing.onnx")
    path = tmp_path / "text.onnx"
    path.write_text("no model")
    with pytest.raises(ValueError, match="text.onnx"):
        read_dinov2_onnx(path)


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.skipif(not VISION_WEIGHTS.is_file(), reason="run make vision-weights")
def test_the_real_vit_s():
    state = read_dinov2_onnx(VISION_WEIGHTS)
    config = Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14)
    dinov2 = Dinov2Model(config).eval()
    own = dinov2.state_dict().keys()
    if not state.keys() <= own:  # transformers 4 has other names
        state = {_old_name(name): value for name, value in state.items()}
    incompatible = dinov2.load_state_dict(state, strict=False)
    assert incompatible.missing_keys == ["embeddings.mask_token"] and incompatible.unexpected_keys == []
    class_token, patches = _cosines(dinov2, 6, image_size=224)
    assert class_token > 0.999 and patches > 0.99
