"""The craft of fine-tuning: layer-wise decay, drop path, averaging, LoRA, soft labels."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from clip_koa.training.averaging import WeightAverage
from clip_koa.training.cpu_kernels import ATTENTION, choose_kernels
from clip_koa.training.lora import LORA_PREFIX, add_lora, merged
from clip_koa.training.optimisation import build_optimizer
from clip_koa.training.regularisation import DropPath, PatchDropout
from clip_koa.training.run_config import OptimisationOptions
from modeling_clip_koa import soft_labels


def _rates(model, config, new=()) -> dict[str, float]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = build_optimizer(model, config, new).param_groups
    return {names[parameter]: group["lr"] for group in groups for parameter in group["params"]}


def test_lower_blocks_learn_more_slowly(make_model):
    rates = _rates(
        make_model(), OptimisationOptions(learning_rate=1.0, new_learning_rate=3.0, layer_decay=0.5), ("classifier",)
    )
    assert rates["classifier.weight"] == 3.0
    assert rates["visual_projection.weight"] == rates["vision_model.post_layernorm.weight"] == 1.0
    for tower in ("vision_model", "text_model"):
        assert rates[f"{tower}.encoder.layers.1.mlp.fc1.weight"] == 1.0
        assert rates[f"{tower}.encoder.layers.0.mlp.fc1.weight"] == 0.5
    assert rates["vision_model.embeddings.patch_embedding.weight"] == 0.25
    assert rates["vision_model.pre_layrnorm.weight"] == rates["text_model.embeddings.token_embedding.weight"] == 0.25


def test_small_layers_learn_more_slowly_with_scaled_rates(make_model):
    """As where a LayerScale of .1 was folded into a layer: its rate falls by the same factor, its bias's too."""
    model = make_model()
    small = "vision_model.encoder.layers.0.mlp.fc2"
    rates = _rates(model, OptimisationOptions(learning_rate=1.0, scale_rates=True), ("classifier", "text_model"))
    with torch.no_grad():
        model.get_submodule(small).weight.mul_(0.1)
    scaled = _rates(model, OptimisationOptions(learning_rate=1.0, scale_rates=True), ("classifier", "text_model"))
    assert scaled[f"{small}.weight"] == pytest.approx(0.1 * rates[f"{small}.weight"], rel=0.1)
    assert scaled[f"{small}.bias"] == scaled[f"{small}.weight"]
    assert scaled["vision_model.encoder.layers.1.mlp.fc1.weight"] == pytest.approx(1.0, rel=0.5)
    others = ("vision_model.post_layernorm.weight", "visual_projection.weight", "vision_model.pre_layrnorm.weight")
    assert {scaled[name] for name in others} == {1.0}
    assert {rate for name, rate in scaled.items() if name.startswith(("classifier", "text_model"))} == {1e-3}
    plain = _rates(model, OptimisationOptions(learning_rate=1.0), ("classifier", "text_model"))
    assert plain[f"{small}.weight"] == 1.0


@pytest.mark.parametrize("scale_rates", [False, True])
def test_every_trained_parameter_is_in_one_group(make_model, scale_rates):
    model = make_model()
    model.vision_model.embeddings.requires_grad_(False)
    config = OptimisationOptions(layer_decay=0.7, scale_rates=scale_rates)
    groups = build_optimizer(model, config, ("classifier",)).param_groups
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped)) == sum(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_kernels_that_train_fast_learn_the_same_and_are_not_saved(
    make_model, pixel_values, labels, tmp_path, precision, tolerance
):
    gradients = []
    for device in ("meta", "cpu"):  # on another device than a CPU nothing is chosen
        model = make_model().train()
        choose_kernels(model, torch.device(device))
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            model(pixel_values, labels=labels).loss.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.vision_model.parameters()]))
    assert model.config.vision_config._attn_implementation == ATTENTION
    assert type(model.vision_model.encoder.layers[0].mlp.activation_fn).__name__ == "_QuickGELU"
    assert not torch.equal(*gradients)
    assert (gradients[0] - gradients[1]).norm() < tolerance * gradients[0].norm()
    model.save_pretrained(tmp_path)
    assert ATTENTION not in (tmp_path / "config.json").read_text()
    kept = type(model).from_pretrained(tmp_path)
    assert kept.config.vision_config._attn_implementation == "sdpa"
    # Where no gradient goes, the chosen attention is the kept model's own, to the bit.
    with torch.no_grad():
        logits = [one.eval()(pixel_values).logits for one in (model, kept)]
    assert torch.equal(*logits)


def test_drop_path_drops_whole_xrays_with_their_mirror_images(make_model, pixel_values):
    model = make_model()
    drop_path = DropPath(model.vision_model.encoder.layers, 0.5, frozen=0, seed=0)
    expected = model.eval()(pixel_values, flip_average=False).image_embeds
    model.train()
    drop_path.draw(torch.arange(6), epoch=0)
    assert set(drop_path.factors[1].tolist()) == {0.0, 2.0}  # the last block, at rate .5
    views = torch.cat([pixel_values, pixel_values])
    seen = {}
    model.vision_model.encoder.layers[1].register_forward_hook(
        lambda layer, inputs, output: seen.update(
            inputs=inputs[0], output=output[0] if isinstance(output, tuple) else output
        )
    )
    model.vision_model(pixel_values=views)
    for number, factor in enumerate(drop_path.factors[1].tolist() * 2):
        assert torch.equal(seen["inputs"][number], seen["output"][number]) == (factor == 0)
    # Nothing is dropped at inference.
    assert torch.equal(model.eval()(pixel_values, flip_average=False).image_embeds, expected)


def test_drop_path_depends_on_seed_epoch_and_xray_alone(make_model):
    layers = make_model().vision_model.encoder.layers
    one, two = (DropPath(layers, 0.6, frozen=1, seed=seed) for seed in (0, 1))
    one.draw(torch.arange(64), epoch=1)
    together = one.factors
    assert (together[0] == 1).all()  # frozen
    assert together[1].mean() == pytest.approx(1, abs=0.5)
    one.draw(torch.tensor([7, 3]), epoch=1)
    assert torch.equal(one.factors, together[:, [7, 3]])
    two.draw(torch.arange(64), epoch=1)
    assert not torch.equal(two.factors, together)


def test_patch_dropout_leaves_out_patches_and_their_mirror_patches(make_model, pixel_values):
    model = make_model()
    embeddings = model.vision_model.embeddings
    expected = model.eval()(pixel_values, flip_average=False).image_embeds
    whole = embeddings(torch.cat([pixel_values, pixel_values]))
    dropout = PatchDropout(embeddings, 0.5, seed=0)
    model.train()
    dropout.draw(torch.arange(6), epoch=0)
    seen = embeddings(torch.cat([pixel_values, pixel_values]))
    patches, side = embeddings.num_patches, dropout.side
    assert seen.shape == (12, 1 + patches // 2, whole.shape[2])
    for number in range(6):
        kept = dropout.kept[number]
        assert len(kept.unique()) == patches // 2
        assert torch.equal(seen[number], whole[number][torch.cat([torch.zeros(1, dtype=int), kept + 1])])
        mirrored = (kept // side) * side + side - 1 - kept % side
        assert torch.equal(seen[6 + number, 1:], whole[6 + number][mirrored + 1])
    # Nothing is left out at inference.
    assert torch.equal(model.eval()(pixel_values, flip_average=False).image_embeds, expected)


def test_patch_dropout_spares_the_joint_and_depends_on_seed_epoch_and_xray_alone(make_model):
    dropout = PatchDropout(make_model().vision_model.embeddings, 0.5, seed=0)
    dropout.draw(torch.arange(200), epoch=0)
    together = dropout.kept
    rows = torch.bincount((together // dropout.side).flatten(), minlength=dropout.side)
    assert rows.argmax() == int(0.57 * dropout.side) and rows[0] < rows.max() / 2
    dropout.draw(torch.tensor([7, 3]), epoch=0)
    assert torch.equal(dropout.kept, together[[7, 3]])
    dropout.draw(torch.arange(200), epoch=1)
    assert not torch.equal(dropout.kept, together)


def test_the_average_follows_the_weights_and_steps_in(make_model, pixel_values):
    model = make_model().eval()
    average = WeightAverage(model, decay=0.5)
    weight = model.classifier.weight
    start = weight.detach().clone()
    followed = start.clone()
    for step in range(3):
        with torch.no_grad():
            weight.add_(1.0)
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        followed = decay * followed + (1 - decay) * (start + step + 1)
    with average.applied():
        torch.testing.assert_close(weight, followed)
    assert torch.equal(weight, start + 1 + 1 + 1)


def test_the_averaged_text_tower_gives_the_averaged_grade_embeds(make_model, pixel_values):
    model = make_model().eval()
    average = WeightAverage(model, decay=0.9)
    before = model(pixel_values, flip_average=False).grade_embeds.clone()
    with torch.no_grad():
        for parameter in model.text_model.parameters():
            parameter.mul_(1.5)
    model.forget_grade_embeds()
    changed = model(pixel_values, flip_average=False).grade_embeds.clone()
    with average.applied():  # nothing taken in yet: the weights it began with
        torch.testing.assert_close(model(pixel_values, flip_average=False).grade_embeds, before)
    torch.testing.assert_close(model(pixel_values, flip_average=False).grade_embeds, changed)
    assert not torch.allclose(before, changed)


def test_an_average_comes_back_from_its_state(make_model):
    model = make_model()
    average = WeightAverage(model, decay=0.5)
    with torch.no_grad():
        model.classifier.weight.add_(1.0)
    average.update()
    other = WeightAverage(make_model(seed=5), decay=0.5)
    other.load_state_dict(copy.deepcopy(average.state_dict()))
    assert other.steps == 1
    assert all(torch.equal(a, b) for a, b in zip(other.averages, average.averages, strict=True))
    assert WeightAverage(model, decay=0.0).averages == []


def test_lora_trains_little_and_merges_into_a_plain_model(make_model, pixel_values, labels, tmp_path):
    pytest.importorskip("peft")
    model = make_model()
    names = set(model.state_dict())
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if name.startswith("vision_model")}
    add_lora(model, rank=2)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert any(LORA_PREFIX in name for name in trained)
    assert not [name for name in trained if name.startswith("vision_model") and LORA_PREFIX not in name]
    assert any(name.startswith("text_model") for name in trained)
    optimizer = build_optimizer(
        model, OptimisationOptions(new_learning_rate=0.05, learning_rate=0.01), ("classifier",)
    )
    for _ in range(3):
        optimizer.zero_grad()
        model.train()(pixel_values, labels=labels).loss.backward()
        optimizer.step()
    plain = merged(model)
    assert set(plain.state_dict()) == names
    assert type(plain.vision_model.encoder.layers[0].mlp.fc1) is torch.nn.Linear
    torch.testing.assert_close(
        plain.eval()(pixel_values).logits, model.eval()(pixel_values).logits, rtol=1e-4, atol=1e-4
    )
    changed = [name for name, value in frozen.items() if not torch.equal(plain.get_parameter(name), value)]
    assert changed and all("_proj.weight" in name or ".fc" in name for name in changed)
    assert merged(plain) is plain


def test_soft_labels_by_hand():
    labels = torch.tensor([0, 2])
    assert torch.equal(soft_labels(labels, 5), F.one_hot(labels, 5).float())
    smoothed = soft_labels(labels, 5, label_smoothing=0.1)
    assert smoothed[0].tolist() == pytest.approx([0.92, 0.02, 0.02, 0.02, 0.02])
    near, far = math.exp(-0.5), math.exp(-2.0)
    total = 1 + 2 * near + 2 * far
    expected = [far / total, near / total, 1 / total, near / total, far / total]
    assert soft_labels(labels, 5, ordinal_smoothing=1.0)[1].tolist() == pytest.approx(expected)


def test_soft_labels_train_the_model(make_model, pixel_values, labels):
    model = make_model(symmetry=True, consistency_weight=0.0)
    hard = model(pixel_values, labels=labels).loss
    one_hot = model(pixel_values, labels=soft_labels(labels, 5)).loss
    torch.testing.assert_close(hard, one_hot)
    assert not torch.isclose(hard, model(pixel_values, labels=soft_labels(labels, 5, 0.1, 0.5)).loss)
    with pytest.raises(ValueError, match="labels have shape"):
        model(pixel_values, labels=torch.zeros(6, 4))
