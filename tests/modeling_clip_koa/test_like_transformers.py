"""What stock `CLIPForImageClassification` takes, ours takes: after transformers' own tests of its models."""

import copy
import inspect

import pytest
import torch
from transformers import AutoModel, AutoModelForImageClassification, CLIPForImageClassification, CLIPModel

from modeling_clip_koa import CLIPKOAConfig, CLIPKOAForImageClassification, CLIPKOAOutput, soft_labels

PROMPTS = {count: [[f"grade {grade}"] for grade in range(count)] for count in (2, 3, 7)}


@pytest.fixture
def folder(make_model, tokenizer, tmp_path):
    make_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def pair(folder):
    """Ours and stock, of the same folder, with attention that can be given."""
    classes = (CLIPKOAForImageClassification, CLIPForImageClassification)
    return [each.from_pretrained(folder, attn_implementation="eager").eval() for each in classes]


def test_the_signature_holds_stocks():
    ours, stock = (
        list(inspect.signature(each.forward).parameters)
        for each in (CLIPKOAForImageClassification, CLIPForImageClassification)
    )
    assert ours[:3] == ["self", "pixel_values", "labels"]
    assert set(stock) - set(ours) <= {"kwargs"}
    assert {"output_attentions", "output_hidden_states", "interpolate_pos_encoding", "return_dict"} <= set(ours)


@torch.no_grad()
def test_attentions_and_hidden_states_are_stocks(pair, pixel_values):
    asked = {"output_attentions": True, "output_hidden_states": True}
    ours, theirs = pair[0](pixel_values, flip_average=False, **asked), pair[1](pixel_values, **asked)
    torch.testing.assert_close(ours.classifier_logits, theirs.logits)
    for name in ("attentions", "hidden_states"):
        one, other = getattr(ours, name), getattr(theirs, name)
        assert len(one) == len(other) == pair[0].config.vision_config.num_hidden_layers + (name == "hidden_states")
        for mine, stock in zip(one, other, strict=True):
            torch.testing.assert_close(mine, stock)
    # With both views: those of the X-rays, then those of the mirror images.
    both = pair[0](pixel_values, flip_average=True, **asked)
    mirror = pair[1](pixel_values.flip(-1), **asked)
    torch.testing.assert_close(both.hidden_states[-1], torch.cat([theirs.hidden_states[-1], mirror.hidden_states[-1]]))
    torch.testing.assert_close(both.attentions[0], torch.cat([theirs.attentions[0], mirror.attentions[0]]))
    assert pair[0](pixel_values).attentions is None is pair[0](pixel_values).hidden_states


@pytest.mark.parametrize("where", ["config", "vision_config"])
@torch.no_grad()
def test_they_can_be_asked_for_in_the_config(pair, pixel_values, labels, where):
    model = pair[0]
    config = model.config if where == "config" else model.config.vision_config
    config.output_attentions = config.output_hidden_states = True
    for training in (False, True):
        output = model.train(training)(pixel_values, labels=labels)
        assert len(output.attentions) == 2 and len(output.hidden_states) == 3
    quiet = model.eval()(pixel_values, output_attentions=False, output_hidden_states=False)
    assert quiet.attentions is None is quiet.hidden_states


def test_gradients_reach_attentions_and_hidden_states(pair, pixel_values):
    output = pair[0](pixel_values, output_attentions=True, output_hidden_states=True)
    kept = [output.attentions[0], output.hidden_states[0]]
    for part in kept:
        part.retain_grad()
    output.logits[:, 0].sum().backward()
    assert all(part.grad.abs().max() > 0 for part in kept)


@pytest.mark.parametrize("size", [(48, 48), (32, 56), (40, 24)])
@torch.no_grad()
def test_interpolated_positions_are_stocks(pair, size):
    images = torch.randn(2, 3, *size)
    ours = pair[0](images, interpolate_pos_encoding=True, flip_average=False)
    tokens = pair[1].vision_model(images, interpolate_pos_encoding=True).last_hidden_state  # as in transformers 4 too
    torch.testing.assert_close(ours.classifier_logits, pair[1].classifier(tokens[:, 1:].mean(1)))
    averaged, mirrored = (pair[0](view, interpolate_pos_encoding=True).logits for view in (images, images.flip(-1)))
    torch.testing.assert_close(averaged, mirrored, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"this model reads \(N, 3, 32, 32\)"):
        pair[0](images)
    with pytest.raises(ValueError, match="this model reads"):
        pair[0](images[:, :, :4], interpolate_pos_encoding=True)


def test_training_on_images_of_other_sizes(pair, labels):
    images = torch.randn(6, 3, 48, 48)
    pair[0].train()(images, labels=labels, interpolate_pos_encoding=True).loss.backward()
    assert pair[0].vision_model.embeddings.position_embedding.weight.grad.abs().max() > 0


@torch.no_grad()
def test_tuples_and_dictionaries_hold_the_same(pair, pixel_values, labels):
    model = pair[0]
    for asked in ({}, {"labels": labels}, {"output_attentions": True, "output_hidden_states": True}):
        named = model(pixel_values, **asked)
        in_order = model(pixel_values, return_dict=False, **asked)
        assert isinstance(named, CLIPKOAOutput) and type(in_order) is tuple
        model.config.return_dict = False
        by_config, named_again = model(pixel_values, **asked), model(pixel_values, return_dict=True, **asked)
        model.config.return_dict = True
        assert type(by_config) is tuple and isinstance(named_again, CLIPKOAOutput)
        for one, other, third in zip(named.to_tuple(), in_order, by_config, strict=True):
            torch.testing.assert_close(one, other)
            torch.testing.assert_close(one, third)


@torch.no_grad()
def test_batches_do_not_matter(pair, pixel_values):
    together = pair[0](pixel_values).logits
    alone = torch.cat([pair[0](pixel_values[number : number + 1]).logits for number in range(6)])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    assert torch.equal(pair[0](pixel_values).logits, together)


@pytest.mark.parametrize("flip_average", [True, False])
@torch.no_grad()
def test_export_with_a_free_batch(pair, pixel_values, flip_average):
    batch = torch.export.Dim("batch")
    exported = torch.export.export(
        pair[0], (pixel_values[:2],), {"flip_average": flip_average},
        dynamic_shapes={"pixel_values": {0: batch}, "flip_average": None},
    )  # fmt: skip
    for count in (2, 5):
        expected = pair[0](pixel_values[:count], flip_average=flip_average)
        output = exported.module()(pixel_values[:count], flip_average=flip_average)
        torch.testing.assert_close(output.logits, expected.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(output.classifier_logits, expected.classifier_logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [2, 3, 7])
@torch.no_grad()
def test_other_numbers_of_labels_come_back(make_model, tokenizer, pixel_values, tmp_path, count):
    settings = make_model().config.to_dict()
    towers = {name: settings[name] for name in ("text_config", "vision_config", "projection_dim")}
    model = CLIPKOAForImageClassification(CLIPKOAConfig(**towers, num_labels=count, prompts=PROMPTS[count])).eval()
    model.set_prompts(PROMPTS[count], tokenizer)
    model.save_pretrained(tmp_path)
    loaded = CLIPKOAForImageClassification.from_pretrained(tmp_path).eval()
    assert loaded.config.num_labels == count and loaded.config.id2label == model.config.id2label
    torch.testing.assert_close(loaded(pixel_values).logits, model(pixel_values).logits)
    again = CLIPKOAConfig.from_dict(loaded.config.to_dict())
    assert again.num_labels == count and again.prompts == PROMPTS[count]
    assert CLIPForImageClassification.from_pretrained(tmp_path)(pixel_values).logits.shape == (6, count)


@pytest.mark.parametrize("labels", [{"num_labels": 3}, {"id2label": {0: "low", 1: "middle", 2: "high"}}])
def test_new_heads_for_other_labels(folder, pixel_values, labels):
    model = CLIPKOAForImageClassification.from_pretrained(folder, **labels, prompts=PROMPTS[3]).eval()
    assert model.config.num_labels == 3 and model.config.id2label == labels.get("id2label", model.config.id2label)
    assert model(pixel_values).logits.shape == model(pixel_values).classifier_logits.shape == (6, 3)
    assert 0.01 < model.classifier.weight.std() < 0.03
    stock = CLIPModel.from_pretrained(folder).state_dict()
    assert all(torch.equal(value, stock[name]) for name, value in model.state_dict().items() if name in stock)
    model.train()(pixel_values, labels=torch.tensor([0, 1, 2, 0, 1, 2])).loss.backward()
    model.save_pretrained(folder.parent / "new")
    assert CLIPKOAForImageClassification.from_pretrained(folder.parent / "new").config.num_labels == 3
    with pytest.raises(
        ValueError, match="3 labels are given and the checkpoint has prompts for 5: give prompts as well"
    ):
        CLIPKOAForImageClassification.from_pretrained(folder, **labels)
    with pytest.raises(
        ValueError, match="Prompts for 3 labels are given and the checkpoint has 5: give num_labels=3 as well"
    ):
        CLIPKOAForImageClassification.from_pretrained(folder, prompts=PROMPTS[3])


@pytest.mark.parametrize(
    "given", [{"num_labels": 3}, {"prompts": PROMPTS[3]}, {"num_labels": 4, "prompts": PROMPTS[3]}]
)
def test_labels_and_prompts_are_given_together(folder, given):
    with pytest.raises(ValueError, match=r"give (prompts|num_labels=3|num_labels and prompts)"):
        AutoModel.from_pretrained(folder, trust_remote_code=True, **given)


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForImageClassification])
def test_auto_classes_give_new_heads_too(folder, pixel_values, auto):
    model = auto.from_pretrained(folder, num_labels=3, prompts=PROMPTS[3], trust_remote_code=True)
    assert model(pixel_values).logits.shape == (6, 3) and model.config.prompts == PROMPTS[3]
    kept = auto.from_pretrained(folder, num_labels=5, trust_remote_code=True)  # as many as there are
    assert torch.equal(kept.classifier.weight, CLIPForImageClassification.from_pretrained(folder).classifier.weight)


def test_sizes_that_differ_are_refused_unless_asked(folder):
    config = CLIPKOAConfig.from_pretrained(folder)
    config.vision_config.hidden_size = 48
    with pytest.raises(ValueError, match=r"what its config\.json describes: .* has another size") as refused:
        CLIPKOAForImageClassification.from_pretrained(folder, config=config)
    assert len(str(refused.value)) < 400
    model = CLIPKOAForImageClassification.from_pretrained(folder, config=config, ignore_mismatched_sizes=True)
    assert model.classifier.weight.shape == (5, 48)


def test_settings_given_while_loading_are_checked(folder):
    for name, value in (("consistency", "cosine"), ("consistency_weight", -1), ("problem_type", "regression")):
        with pytest.raises(ValueError, match=name):
            CLIPKOAForImageClassification.from_pretrained(folder, **{name: value})
    with pytest.raises(ValueError, match="num_labels=1"):
        CLIPKOAConfig(num_labels=1, prompts=[["a knee"]])


# Built, not loaded.


def _build(folder, way):
    config = CLIPKOAConfig.from_pretrained(folder)
    if way == "class":
        return CLIPKOAForImageClassification(config)
    if way == "copied config":
        return CLIPKOAForImageClassification(copy.deepcopy(config))
    if way == "from_config":
        return CLIPKOAForImageClassification._from_config(config)
    with torch.device("meta"):
        model = CLIPKOAForImageClassification(config)
    model.to_empty(device="cpu")
    for name, tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        tensor.data.zero_()
        if name.endswith("position_ids"):
            tensor.data.copy_(torch.arange(tensor.numel()))
    return model


@pytest.mark.parametrize("way", ["class", "copied config", "from_config", "empty"])
def test_a_model_that_was_built_asks_for_prompts(folder, tokenizer, pixel_values, labels, tmp_path, way):
    model = _build(folder, way)
    for use in (
        lambda: model.eval()(pixel_values),
        lambda: model.train()(pixel_values, labels=labels),
        lambda: model.eval().grade_views(pixel_values),
        lambda: model.get_grade_embeds(),
        lambda: model.save_pretrained(tmp_path / "dead"),
    ):
        with pytest.raises(ValueError, match="set_prompts"):
            use()
    assert not (tmp_path / "dead").exists()
    model.state_dict()  # asked for by many a tool
    weights = CLIPKOAForImageClassification.from_pretrained(folder).eval()
    model.load_state_dict(weights.state_dict())
    torch.testing.assert_close(model.eval()(pixel_values).logits, weights(pixel_values).logits)
    other = _build(folder, way)
    other.set_prompts(other.config.prompts, tokenizer)
    assert other.train()(pixel_values, labels=labels).loss.isfinite()


def test_from_config_by_auto_class(folder, pixel_values, run_python):
    """As a stranger does it, without this repository."""
    program = f"""
import torch
from transformers import AutoConfig, AutoModelForImageClassification
config = AutoConfig.from_pretrained({str(folder)!r}, trust_remote_code=True)
model = AutoModelForImageClassification.from_config(config, trust_remote_code=True)
try:
    model(torch.zeros(1, 3, 32, 32), labels=torch.tensor([2]))
except ValueError as error:
    print(error)
"""
    assert "set_prompts" in run_python("-c", program, cwd=folder.parent).stdout


def test_prompts_edited_in_the_config_are_told(make_model, pixel_values, labels):
    model = make_model()
    model.config.prompts = PROMPTS[7][:5]
    with pytest.raises(ValueError, match=r"config\.prompts was edited: call model\.set_prompts"):
        model.train()(pixel_values, labels=labels)


# What is no X-ray and no grade.


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (None, "NoneType: prepare X-rays"),
        ([[1.0]], "list: prepare X-rays"),
        (torch.zeros(2, 3, 32, 32).numpy(), "float32: prepare X-rays"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "uint8: prepare X-rays"),
        (torch.zeros(0, 3, 32, 32), "no X-ray: give at least one"),
        (torch.full((2, 3, 32, 32), float("nan")), "no finite numbers"),
        (torch.full((2, 3, 32, 32), float("inf")), "no finite numbers"),
        (torch.zeros(3, 32, 32), r"this model reads \(N, 3, 32, 32\)"),
    ],
)
def test_what_is_no_xray_is_refused(make_model, pixels, message):
    model = make_model()
    for training in (False, True):
        with pytest.raises(ValueError, match=message):
            model.train(training)(pixels)
    if isinstance(pixels, torch.Tensor):
        with pytest.raises(ValueError, match=message):
            model.grade_views(pixels)


def test_bright_pixels_are_no_infinity(make_model, pixel_values):
    """Their sum is above what the type holds."""
    model = make_model().eval()
    assert model.half()((pixel_values + 900).half()).logits.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64])
def test_labels_of_every_integer_type(make_model, pixel_values, labels, dtype):
    model = make_model().eval()
    torch.testing.assert_close(
        model(pixel_values, labels=labels.to(dtype)).loss, model(pixel_values, labels=labels).loss
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_soft_labels_of_every_type(make_model, pixel_values, labels, dtype):
    model = make_model().eval()
    soft = soft_labels(labels, 5, *((0.0, 0.0) if dtype == torch.int64 else (0.1, 0.7)))
    torch.testing.assert_close(
        model(pixel_values, labels=soft.to(dtype)).loss, model(pixel_values, labels=soft).loss, rtol=1e-2, atol=1e-2
    )


_EVEN = torch.full((6, 5), 0.2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([0, 1, 2, 3, 4, 2], "list: give a tensor of grades"),
        (torch.tensor([0.0, 1, 2, 3, 4, 2]), "float32: grades are integers"),
        (torch.tensor([0, 1, 2, 3, 4, 5]), "grade 5: KL grades are 0 to 4"),
        (torch.tensor([0, 1, 2, 3, 4, -100]), "grade -100"),
        (torch.zeros(6, 1, dtype=torch.long), r"shape \(6, 1\)"),
        (torch.full((6, 5), float("nan")), "no negative share and sums to 1"),
        (torch.full((6, 5), float("inf")), "no negative share and sums to 1"),
        (_EVEN + torch.tensor([0.3, -0.3, 0, 0, 0]), r"\[0\.5, -0\.1, 0\.2"),
        (2 * _EVEN, r"\[0\.4, 0\.4, 0\.4, 0\.4, 0\.4\]"),
        (0 * _EVEN, "sums to 1"),
    ],
)
def test_what_is_no_grade_is_refused(make_model, pixel_values, wrong, message):
    model = make_model()
    for training in (False, True):
        with pytest.raises(ValueError, match=message):
            model.train(training)(pixel_values, labels=wrong)
