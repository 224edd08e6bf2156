"""Where training can start, and that pretrained weights arrive unchanged."""

import pytest
import torch
from transformers import CLIPImageProcessor, CLIPModel, Dinov2Config, Dinov2Model

from clip_koa.calibration.temperatures import fold_temperatures
from clip_koa.training.starting_points import SMALL_CONFIGURATIONS, load_starting_point
from clip_koa.training.tokenizer import build_prompt_tokenizer
from dataset_script.synthetic import draw_knee
from modeling_clip_koa import PROMPT_SETS, CLIPKOAForImageClassification

PROMPTS = PROMPT_SETS["standard"]


@pytest.fixture
def clip_folder(make_model, tokenizer, tmp_path):
    """A folder of plain CLIP weights, as the Hub has them."""
    folder = tmp_path / "clip"
    make_model().save_pretrained(tmp_path / "koa")
    stock = CLIPModel.from_pretrained(tmp_path / "koa")
    for name in ("prompts", "prompt_shape", "tokenized_prompts", "auto_map", "id2label", "label2id"):
        if hasattr(stock.config, name):
            delattr(stock.config, name)
    stock.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_tiny_is_the_same_every_time():
    starts = []
    for _ in range(2):
        torch.manual_seed(0)
        starts.append(load_starting_point("tiny", PROMPTS, []))
    one, other = (start.model.state_dict() for start in starts)
    assert all(one[name].equal(other[name]) for name in one)
    assert (
        starts[0].model.config.vision_config.image_size == SMALL_CONFIGURATIONS["tiny"]["vision_config"]["image_size"]
    )


def test_plain_clip_weights_arrive_unchanged(clip_folder):
    start = load_starting_point(str(clip_folder), PROMPTS, [], consistency="mse")
    stock = CLIPModel.from_pretrained(clip_folder).state_dict()
    ours = start.model.state_dict()
    assert all(ours[name].equal(stock[name]) for name in stock)
    assert {name.split(".")[0] for name in set(ours) - set(stock)} == {"classifier", "grade_prompts"}
    assert start.new_parameters == ("classifier",)
    assert 0.01 < start.model.classifier.weight.std() < 0.03
    assert start.model.config.consistency == "mse" and start.model.config.prompts == PROMPTS
    torch.testing.assert_close(start.model.grade_prompts.embeds, start.model.get_grade_embeds())


def test_plain_clip_weights_load_in_one_line(clip_folder):
    model = CLIPKOAForImageClassification.from_pretrained(clip_folder).eval()
    assert model.grade_prompts.embeds.any()
    assert model(torch.zeros(1, 3, 32, 32)).logits.shape == (1, 5)


def test_a_clip_koa_checkpoint_goes_on(make_model, tokenizer, tmp_path):
    model = make_model()
    fold_temperatures(model, 2.0, 4.0)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    CLIPImageProcessor().save_pretrained(tmp_path)
    start = load_starting_point(str(tmp_path), PROMPTS, [])
    assert start.new_parameters == ()
    assert start.model.config.calibration is None  # it was fitted on weights that will be trained on
    assert start.model.classifier.weight.equal(model.classifier.weight)
    assert start.model.config.prompts == PROMPTS  # another prompt set than the checkpoint's


def test_a_dinov2_folder(tmp_path):
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=64, num_hidden_layers=2, num_attention_heads=1, image_size=112, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path)
    knees = [draw_knee(seed % 5, "L", seed) for seed in range(8)]
    start = load_starting_point(str(tmp_path), PROMPTS, knees)
    vision = start.model.config.vision_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.image_size, vision.patch_size) == (64, 2, 224, 14)
    assert "visual_projection" in start.new_parameters and start.image_processor.image_mean[0] == 0.485
    pixel_values = start.image_processor(knees[:2], return_tensors="pt")["pixel_values"]
    assert start.model.eval()(pixel_values).logits.isfinite().all()
    # rad-dino, for one, was trained with a normalisation of its own.
    CLIPImageProcessor(image_mean=[0.53] * 3, image_std=[0.26] * 3).save_pretrained(tmp_path)
    assert load_starting_point(str(tmp_path), PROMPTS, knees).image_processor.image_mean == (0.53,) * 3


def test_other_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="neither a folder"):
        load_starting_point("no/such-model", PROMPTS, [])
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_starting_point(str(tmp_path), PROMPTS, [])
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="'bert'"):
        load_starting_point(str(tmp_path), PROMPTS, [])


def test_tokenizer_spells_any_text_and_the_prompts_briefly():
    tokenizer = build_prompt_tokenizer(PROMPT_SETS["ensemble"], 77)
    for texts in PROMPT_SETS["ensemble"]:
        for text in texts:
            ids = tokenizer(text)["input_ids"]
            assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
            assert len(ids) <= 77
            assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")
    assert tokenizer.unk_token_id not in tokenizer("Zürich 中文")["input_ids"][1:-1]
