"""Inference never uses grade embeddings that the text tower of that moment would not give, and none are saved."""

import copy
import io

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrize, prune

from modeling_clip_koa import PROMPT_SETS, CLIPKOAForImageClassification

# What the two ways may differ by: rounding, in the precision of the weights.
TOLERANCE = {"rtol": 0, "atol": 1e-5}


@torch.no_grad()
def fresh_logits(model, pixel_values):
    """The text head's logits by a text tower that runs for this call."""
    embeds = model.get_grade_embeds()
    vision = model.vision_model(pixel_values=pixel_values).pooler_output
    image_embeds = nn.functional.normalize(model.visual_projection(vision).float(), dim=-1)
    return model.logit_scale.float().exp() * image_embeds @ embeds.t()


def check(model, pixel_values, **tolerance):
    """Every way to infer gives what the text tower of this moment gives; twice, for the second may be kept."""
    was_training = model.training
    model.training = False  # not by eval(), which forgets what is kept
    expected = fresh_logits(model, pixel_values)
    tolerance = tolerance or TOLERANCE
    for context in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with context():
            for _ in range(2):
                output = model(pixel_values, flip_average=False)
                torch.testing.assert_close(output.logits.detach(), expected, **tolerance)
                torch.testing.assert_close(model.grade_views(pixel_values), expected, **tolerance)
    model.training = was_training
    return expected


@pytest.fixture
def model(make_model, pixel_values):
    """In evaluation mode, with its grade embeddings kept by an inference."""
    model = make_model().eval()
    with torch.no_grad():
        model(pixel_values)
    return model


def _noisy(model, seed=5):
    """Another model's weights: these, and much noise in the text tower."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + 0.5 * torch.randn(value.shape, generator=generator) if _is_text(name, value) else value.clone()
        for name, value in model.state_dict().items()
    }


def _is_text(name, value) -> bool:
    return name.startswith("text") and value.is_floating_point()


def average_by_swa(model):
    averaged = torch.optim.swa_utils.AveragedModel(model)
    with torch.no_grad():
        averaged.module(torch.zeros(1, 3, 32, 32))
    other = copy.deepcopy(model)
    other.load_state_dict(_noisy(model))
    averaged.update_parameters(other)
    averaged.update_parameters(other)
    return averaged.module


def load_text_tower(model):
    start = len("text_model.")
    weights = {name[start:]: value for name, value in _noisy(model).items() if name.startswith("text_model.")}
    model.text_model.load_state_dict(weights)


def load_by_assignment(model):
    model.load_state_dict(_noisy(model), assign=True)


def load_other_embeds(model):
    """A state dict that holds embeddings of another text tower."""
    model.load_state_dict({"grade_prompts.embeds": torch.ones(5, 16)}, strict=False)


def write_embeds_in_place(model):
    with torch.no_grad():
        model.grade_prompts.embeds.fill_(1.0)


def prune_text_tower(model):
    for layer in model.text_model.encoder.layers:
        prune.l1_unstructured(layer.mlp.fc1, "weight", amount=0.9)


def prune_for_good(model):
    prune_text_tower(model)
    for layer in model.text_model.encoder.layers:
        prune.remove(layer.mlp.fc1, "weight")


def prune_by_data(model):
    for parameter in model.text_model.parameters():
        parameter.data[parameter.abs() < parameter.abs().median()] = 0


def scale_by_data(model):
    for parameter in model.text_model.parameters():
        parameter.data.mul_(1.7)


def assign_by_data(model):
    for parameter in model.text_model.parameters():
        parameter.data = parameter.data + torch.linspace(0, 1, parameter.numel()).view_as(parameter)


def merge_low_rank_by_data(model):
    """As merging an adapter does: `weight.data += B @ A`, in one kind of layer alone."""
    for layer in model.text_model.encoder.layers:
        weight = layer.self_attn.v_proj.weight
        generator = torch.Generator().manual_seed(0)
        up, down = (torch.randn(shape, generator=generator) for shape in ((32, 2), (2, 32)))
        weight.data += up @ down


def write_through_numpy(model):
    model.text_projection.weight.detach().numpy()[:] *= -1


def write_in_inference_mode(model):
    with torch.inference_mode():
        model.text_projection.weight.mul_(-1)


def swap_a_module(model):
    width = model.config.text_config.hidden_size
    model.text_projection = nn.Linear(width, 16, bias=False)


def swap_the_tower(model):
    other = copy.deepcopy(model)
    other.load_state_dict(_noisy(model))
    model.text_model = other.text_model


def swap_the_activation(model):
    for layer in model.text_model.encoder.layers:
        layer.mlp.activation_fn = nn.Tanh()


def hook_the_tower(model):
    model.text_model.final_layer_norm.register_forward_hook(lambda norm, inputs, output: -output)


def hook_inputs(model):
    model.text_projection.register_forward_pre_hook(lambda layer, inputs: (-inputs[0],))


def replace_forward(model):
    forward = model.text_projection.forward
    model.text_projection.forward = lambda inputs: -forward(inputs)


def parametrize_projection(model):
    class Negative(nn.Module):
        def forward(self, weight):
            return -weight

    parametrize.register_parametrization(model.text_projection, "weight", Negative())


def spectral_norm_projection(model):
    nn.utils.spectral_norm(model.text_projection, n_power_iterations=1)


def tie_to_another_layer(model):
    model.text_model.encoder.layers[0].mlp.fc1.weight = model.text_model.encoder.layers[1].mlp.fc1.weight
    with torch.no_grad():
        model.text_model.encoder.layers[1].mlp.fc1.weight.mul_(3)


def half_and_back(model):
    model.to(torch.bfloat16).float()


def to_double(model):
    model.double().float()


def edit_tokens_in_place(model):
    model.grade_prompts.input_ids.copy_(model.grade_prompts.input_ids.flip(0))


def copy_and_change(model):
    changed = copy.deepcopy(model)
    scale_by_data(changed)
    return changed


def pickle_and_change(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    changed = torch.load(buffer, weights_only=False)
    scale_by_data(changed)
    return changed


def quantize(model):
    engines = torch.backends.quantized.supported_engines
    torch.backends.quantized.engine = next(name for name in engines if name != "none")
    model.text_model = torch.ao.quantization.quantize_dynamic(model.text_model, {nn.Linear}, torch.qint8)


def step_after_an_evaluation(model):
    """backward, then an evaluation, then step: what train.py does where it evaluates between them."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    pixel_values, labels = torch.zeros(2, 3, 32, 32), torch.tensor([0, 4])
    pixel_values[1] += 1
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        model(pixel_values, labels=labels).loss.backward()
        model.training = False
        with torch.no_grad():
            model(pixel_values)
        model.training = True
        optimizer.step()
    model.training = False


def fused_step(model):
    optimizer = torch.optim.AdamW(model.text_model.parameters(), lr=0.5, foreach=True)
    for parameter in model.text_model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


CHANGES = [
    average_by_swa, load_text_tower, load_by_assignment, prune_text_tower, prune_for_good, prune_by_data,
    scale_by_data, assign_by_data, merge_low_rank_by_data, write_through_numpy, write_in_inference_mode, swap_a_module,
    swap_the_tower, swap_the_activation, hook_the_tower, hook_inputs, replace_forward, parametrize_projection,
    spectral_norm_projection, tie_to_another_layer, edit_tokens_in_place, copy_and_change, pickle_and_change,
    step_after_an_evaluation, fused_step,
]  # fmt: skip
# These change little or nothing of the embeddings themselves.
SMALL_CHANGES = [load_other_embeds, write_embeds_in_place, half_and_back, to_double, quantize]


@pytest.mark.parametrize("change", CHANGES + SMALL_CHANGES, ids=lambda change: change.__name__)
def test_inference_follows_every_change(model, pixel_values, tmp_path, change):
    before = check(model, pixel_values)
    model = change(model) or model
    after = check(model, pixel_values)
    assert change in SMALL_CHANGES or (after - before).abs().max() > 1e-2
    # What is kept is what is saved, without an inference in between.
    saved = model.state_dict()["grade_prompts.embeds"]
    torch.testing.assert_close(saved, model.get_grade_embeds().detach(), **TOLERANCE)


@pytest.mark.parametrize(
    "change", [average_by_swa, load_text_tower, scale_by_data, step_after_an_evaluation, fused_step]
)
def test_saving_refreshes_without_an_inference(model, pixel_values, tmp_path, change):
    model = change(model) or model
    model.save_pretrained(tmp_path)
    expected = check(model, pixel_values)
    saved = load_file(tmp_path / "model.safetensors")["grade_prompts.embeds"]
    torch.testing.assert_close(saved, model.get_grade_embeds().detach(), **TOLERANCE)
    loaded = CLIPKOAForImageClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(check(loaded, pixel_values), expected, **TOLERANCE)


def test_weights_edited_in_the_file_count(model, pixel_values, tmp_path):
    """Tools that merge checkpoints average the files' tensors, the embeddings like any other."""
    model.save_pretrained(tmp_path)
    weights = {name: value.contiguous() for name, value in _noisy(model).items()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    check(CLIPKOAForImageClassification.from_pretrained(tmp_path).eval(), pixel_values)


def test_a_checkpoints_own_embeddings_stay_to_the_bit(model, pixel_values, tmp_path):
    """They were computed on another machine, which rounds in another way; grades are to be the same on both."""
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["grade_prompts.embeds"] += 1e-8 * torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = CLIPKOAForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(pixel_values).grade_embeds, weights["grade_prompts.embeds"])
    loaded.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert torch.equal(again["grade_prompts.embeds"], weights["grade_prompts.embeds"])


def test_what_an_output_holds_does_not_change_later(model, pixel_values):
    with torch.no_grad():
        for _ in range(2):  # as computed, and as kept
            given = model(pixel_values).grade_embeds
            before = given.clone()
            write_embeds_in_place(model)
            scale_by_data(model)
            model(pixel_values)
            assert torch.equal(given, before)


def test_adapters_on_both_towers(model, pixel_values):
    """LoRA by peft: switched off and on, exchanged, merged into the weights and out of them, removed."""
    peft = pytest.importorskip("peft")
    plain = check(model, pixel_values)
    settings = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "fc1"], "init_lora_weights": False}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))
    wrapped.add_adapter("second", peft.LoraConfig(**settings))
    model.eval()

    def logits():
        return check(model, pixel_values)

    first = logits()
    wrapped.set_adapter("second")
    second = logits()
    with wrapped.disable_adapter():
        torch.testing.assert_close(logits(), plain, **TOLERANCE)
    torch.testing.assert_close(logits(), second, **TOLERANCE)
    wrapped.merge_adapter()
    merged = logits()
    torch.testing.assert_close(merged, second, rtol=1e-3, atol=1e-3)
    wrapped.unmerge_adapter()
    wrapped.set_adapter("first" if "first" in wrapped.peft_config else "default")
    torch.testing.assert_close(logits(), first, rtol=1e-3, atol=1e-3)
    other = copy.deepcopy(wrapped)
    unloaded = wrapped.unload()
    torch.testing.assert_close(check(unloaded, pixel_values), plain, rtol=1e-3, atol=1e-3)
    merged = other.merge_and_unload()
    torch.testing.assert_close(check(merged, pixel_values), first, rtol=1e-3, atol=1e-3)
    assert (first - second).abs().max() > 1e-2 and (first - plain).abs().max() > 1e-2


def test_merging_after_an_unload_is_seen(model, pixel_values):
    """After `unload` the kept embeddings hold again; `weight.data += delta` on these very parameters must not."""
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["v_proj"], init_lora_weights=False)
    plain = check(model, pixel_values)
    merged = peft.get_peft_model(model, settings).merge_and_unload()
    assert merged is model
    assert (check(model, pixel_values) - plain).abs().max() > 1e-2


def test_functional_calls(model, pixel_values):
    """Other weights for one call, as tensors and as parameters; what comes after has the model's own again."""
    plain = check(model, pixel_values)
    other = copy.deepcopy(model)
    other.load_state_dict(_noisy(model))
    expected = check(other, pixel_values)
    for kind in (torch.Tensor.clone, nn.Parameter):
        weights = {name: kind(value.detach().clone()) for name, value in other.named_parameters()}
        for state in (weights, {**weights, **dict(model.named_buffers())}):
            with torch.no_grad():
                output = torch.func.functional_call(model, state, (pixel_values,), {"flip_average": False})
            torch.testing.assert_close(output.logits, expected, **TOLERANCE)
            torch.testing.assert_close(check(model, pixel_values), plain, **TOLERANCE)


def test_ensembles_by_vmap(model, pixel_values):
    """`torch.func.vmap` over stacked text projections, as its tutorial on ensembles does."""
    stacked = torch.stack([model.text_projection.weight.detach() * factor for factor in (1.0, -1.0)])

    def logits(weight):
        state = {"text_projection.weight": weight}
        return torch.func.functional_call(model, state, (pixel_values,), {"flip_average": False}).logits

    with torch.no_grad():
        one, other = torch.func.vmap(logits)(stacked)
    torch.testing.assert_close(one, check(model, pixel_values), **TOLERANCE)
    torch.testing.assert_close(other, -one, **TOLERANCE)


def test_transforms_over_xrays(make_model, pixel_values):
    """They may be the first inference, and what is kept is no tensor of theirs."""
    model = make_model().eval()
    logits = torch.func.vmap(lambda xray: model(xray[None], flip_average=False).logits[0])(pixel_values)
    torch.testing.assert_close(logits, check(model, pixel_values), **TOLERANCE)
    model.forget_grade_embeds()
    gradient = torch.func.grad(lambda xrays: model(xrays, flip_average=False).logits[:, 0].sum())(pixel_values)
    assert gradient.abs().max() > 0
    check(model, pixel_values)


def test_replicas_of_data_parallel(model, pixel_values):
    """As `nn.DataParallel` makes them: modules without parameters, whose weights are plain attributes."""
    replica = _replicate(model)
    with torch.no_grad():
        torch.testing.assert_close(replica(pixel_values, flip_average=False).logits, fresh_logits(model, pixel_values))
    # Replicas train, the model steps, and the model is evaluated.
    model.training = replica.training = True
    replica(pixel_values, labels=torch.zeros(6, dtype=torch.long))
    model.training = False
    fused_step(model)
    check(model, pixel_values)
    with torch.no_grad():
        torch.testing.assert_close(
            _replicate(model)(pixel_values, flip_average=False).logits, fresh_logits(model, pixel_values)
        )
    check(torch.nn.DataParallel(model).module, pixel_values)


def _replicate(model):
    """What `torch.nn.parallel.replicate` does, which asks for GPUs."""
    modules = list(model.modules())
    replicas = {module: module._replicate_for_data_parallel() for module in modules}
    for module, replica in replicas.items():
        for name, child in module._modules.items():
            setattr(replica, name, replicas[child])
        for name, parameter in module._parameters.items():
            if parameter is None:
                replica._parameters[name] = None
            else:
                setattr(replica, name, parameter * 1)
        for name, buffer in module._buffers.items():
            replica._buffers[name] = buffer
    return replicas[model]


def test_compiled_and_traced_models_follow_their_weights(make_model, pixel_values):
    model = make_model().eval()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(pixel_values, flip_average=False).logits, check(model, pixel_values), **TOLERANCE
        )
        scale_by_data(model)
        torch.testing.assert_close(
            compiled(pixel_values, flip_average=False).logits, check(model, pixel_values), **TOLERANCE
        )


def test_dropout_in_the_text_tower_is_not_kept(make_model, tokenizer, pixel_values, tmp_path):
    """Saved, set and graded from training mode, the embeddings are those without dropout."""
    model = make_model().train()
    for layer in model.text_model.encoder.layers:
        layer.self_attn.dropout = 0.9
    expected = model.eval().get_grade_embeds().detach()
    model.train()
    model.set_prompts(model.config.prompts, tokenizer)
    torch.testing.assert_close(model.grade_prompts.embeds, expected, **TOLERANCE)
    with torch.no_grad():
        model.grade_prompts.embeds.zero_()
    torch.testing.assert_close(model.state_dict()["grade_prompts.embeds"], expected, **TOLERANCE)
    torch.testing.assert_close(model.grade_views(pixel_values), fresh_logits(model.eval(), pixel_values), **TOLERANCE)
    assert model.train().text_model.training  # as it was


def test_autocast_changes_nothing_that_is_kept(make_model, pixel_values):
    model = make_model().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        first = model(pixel_values).grade_embeds
    torch.testing.assert_close(first, model.get_grade_embeds().detach(), **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(model, pixel_values, dtype):
    model.to(dtype)
    embeds = model.eval()(pixel_values.to(dtype)).grade_embeds
    assert embeds.dtype == dtype
    torch.testing.assert_close(embeds, model.get_grade_embeds().detach().to(dtype), rtol=0, atol=0.05)


def test_made_in_inference_mode(make_model, pixel_values):
    """Such tensors have no version: the text tower runs at every inference."""
    with torch.inference_mode():
        model = make_model().eval()
        before = model(pixel_values, flip_average=False).logits
        torch.testing.assert_close(before, fresh_logits(model, pixel_values), **TOLERANCE)
        model.text_projection.weight.mul_(-1)
        torch.testing.assert_close(model(pixel_values, flip_average=False).logits, -before, **TOLERANCE)


def test_kept_in_inference_mode_for_gradients_later(make_model, pixel_values):
    model = make_model().eval()
    with torch.inference_mode():
        model(pixel_values)
    model(pixel_values, flip_average=False).logits.sum().backward()
    assert model.visual_projection.weight.grad.abs().max() > 0


def test_an_edit_of_few_values_needs_to_be_told(model, pixel_values):
    """The limit of what is watched: a write that PyTorch does not count, past the values that are looked at."""
    token = model.grade_prompts.input_ids[0, 1]
    model.text_model.embeddings.token_embedding.weight.data[token, 1:] += 1
    model.forget_grade_embeds()
    check(model, pixel_values)


def test_between_training_and_inference_all_is_computed_anew(model, pixel_values):
    model.train()
    token = model.grade_prompts.input_ids[0, 1]
    model.text_model.embeddings.token_embedding.weight.data[token, 1:] += 1
    check(model.eval(), pixel_values)


def test_prompts_are_set_twice(model, tokenizer, pixel_values):
    for prompts in (PROMPT_SETS["standard"], PROMPT_SETS["ensemble"], PROMPT_SETS["standard"]):
        model.set_prompts(prompts, tokenizer)
        check(model, pixel_values)
