"""The model: heads, losses, the flip-consistency forward, prompts, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F

from clip_koa.training.cpu_kernels import choose_kernels
from modeling_clip_koa import (
    PROMPT_SETS,
    CLIPKOAConfig,
    CLIPKOAForImageClassification,
    consistency_loss,
    symmetry_loss,
)


class Calls:
    """Counts the calls of a module and remembers the size of the last batch."""

    def __init__(self, module):
        self.count, self.batch = 0, 0
        module.register_forward_pre_hook(self._called, with_kwargs=True)

    def _called(self, module, args, kwargs):
        self.count += 1
        self.batch = len(args[0] if args else next(iter(kwargs.values())))


def test_output_holds_every_named_part(make_model, pixel_values, labels):
    output = make_model().train()(pixel_values, labels=labels)
    for part in ("loss", "symmetry_loss", "consistency_loss", "classifier_loss"):
        assert output[part].shape == (), part
    for part in ("logits", "flipped_logits", "classifier_logits", "flipped_classifier_logits"):
        assert output[part].shape == (6, 5), part
    assert output.image_embeds.shape == (6, 16) and output.grade_embeds.shape == (5, 16)
    for embeds in (output.image_embeds, output.grade_embeds):
        torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(len(embeds)))


@pytest.mark.parametrize("symmetry", [False, True])
@pytest.mark.parametrize("consistency_weight", [0.0, 2.5])
def test_the_four_corners(make_model, pixel_values, labels, symmetry, consistency_weight):
    """Symmetry off and on, consistency off and on: the loss is what the pure functions say of the two views."""
    model = make_model(symmetry=symmetry, consistency_weight=consistency_weight, classifier_weight=0.5).train()
    vision = Calls(model.vision_model.embeddings)
    output = model(pixel_values, labels=labels)
    both_views = symmetry or consistency_weight > 0
    assert vision.count == 1 and vision.batch == (12 if both_views else 6)
    assert (output.flipped_logits is not None) == both_views

    mirror = model(pixel_values.flip(-1), labels=labels)  # its own logits are those of the mirror image

    def objective(own, mirrored):
        consistency = consistency_loss(own, mirrored, "js") if consistency_weight else torch.zeros(())
        return symmetry_loss(own, mirrored if symmetry else None, labels), consistency

    head = objective(output.logits, mirror.logits)
    linear = objective(output.classifier_logits, mirror.classifier_logits)
    torch.testing.assert_close(output.symmetry_loss, head[0])
    torch.testing.assert_close(output.consistency_loss, head[1])
    torch.testing.assert_close(output.classifier_loss, linear[0] + consistency_weight * linear[1])
    expected = head[0] + consistency_weight * head[1] + 0.5 * output.classifier_loss
    torch.testing.assert_close(output.loss, expected)


def test_views_apart_on_a_cpu_learn_the_same(make_model, pixel_values, labels):
    """While training on a CPU the blocks see one view at a time: the gradients are those of both at once."""
    apart, together = make_model().train(), make_model().train()
    choose_kernels(apart, torch.device("cpu"))
    blocks = Calls(apart.vision_model.encoder.layers[0])
    for model in (apart, together):
        model(pixel_values, labels=labels).loss.backward()
    assert blocks.count == 2 and blocks.batch == len(pixel_values)
    for (name, one), (_, other) in zip(apart.named_parameters(), together.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_plain_clip_corner_is_cross_entropy_of_cosines(make_model, pixel_values, labels):
    model = make_model(symmetry=False, consistency_weight=0.0, classifier_weight=0.0).train()
    output = model(pixel_values, labels=labels)
    cosines = output.image_embeds @ output.grade_embeds.t()
    torch.testing.assert_close(output.logits, model.logit_scale.exp() * cosines)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, labels))


@pytest.mark.parametrize("consistency", ["js", "kl", "mse"])
def test_consistency_kind_is_used(make_model, pixel_values, labels, consistency):
    output = make_model(consistency=consistency).train()(pixel_values, labels=labels)
    expected = consistency_loss(output.logits, output.flipped_logits, consistency)
    torch.testing.assert_close(output.consistency_loss, expected)


def test_similarities_of_the_two_views_are_compared(make_model, pixel_values, labels):
    """S and Sᴴ, cosine similarities, by squared error; the scale of the logits does not count."""
    model = make_model(consistency="similarity", consistency_weight=2.0).train()
    output = model(pixel_values, labels=labels)
    with torch.no_grad():
        mirrored = model(pixel_values.flip(-1), labels=labels, both_views=False)
    cosines = [part.image_embeds @ part.grade_embeds.t() for part in (output, mirrored)]
    expected = (cosines[0] - cosines[1]).square().sum(-1).mean()
    torch.testing.assert_close(output.consistency_loss, expected, rtol=1e-4, atol=1e-6)
    output.loss.backward()
    with torch.no_grad():
        model.logit_scale.sub_(1.0)
    torch.testing.assert_close(model(pixel_values, labels=labels).consistency_loss, expected, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_flip_average_cannot_depend_on_the_side(make_model, pixel_values):
    model = make_model().eval()
    output, mirrored = model(pixel_values), model(pixel_values.flip(-1))
    torch.testing.assert_close(output.logits, mirrored.logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(output.classifier_logits, mirrored.classifier_logits, atol=1e-6, rtol=0)
    single = model(pixel_values, flip_average=False)
    assert single.flipped_logits is None
    assert (single.logits - model(pixel_values.flip(-1), flip_average=False).logits).abs().max() > 1e-4
    torch.testing.assert_close(output.logits, (single.logits + output.flipped_logits) / 2)


@torch.no_grad()
def test_flip_average_is_switched_in_the_config(make_model, pixel_values):
    off = make_model(flip_average=False).eval()
    on = make_model(flip_average=True).eval()
    torch.testing.assert_close(off(pixel_values).logits, on(pixel_values, flip_average=False).logits)
    torch.testing.assert_close(off(pixel_values, flip_average=True).logits, on(pixel_values).logits)


@torch.no_grad()
def test_grades_do_not_depend_on_labels_being_given(make_model, pixel_values, labels):
    model = make_model().eval()
    torch.testing.assert_close(model(pixel_values).logits, model(pixel_values, labels=labels).logits)


def test_text_tower_runs_once_a_step_and_never_at_inference(make_model, pixel_values, labels, monkeypatch):
    model = make_model().train()
    tower = type(model.text_model)
    calls, run = [], tower.forward
    # Not by a hook: a text tower with hooks may give anything, and runs at every inference.
    monkeypatch.setattr(tower, "forward", lambda *given, **inputs: calls.append(inputs) or run(*given, **inputs))
    model(pixel_values, labels=labels)
    assert len(calls) == 1 and calls[0]["input_ids"] is model.grade_prompts.input_ids  # once, on the prompts
    model.eval()
    with torch.no_grad():
        model(pixel_values)
        assert len(calls) == 2  # the weights may have changed: refreshed once
        model(pixel_values)
        model.grade_views(pixel_values)
    assert len(calls) == 2


def test_training_refreshes_the_grade_embeddings(make_model, pixel_values, labels, tmp_path):
    model = make_model()
    before = model.grade_prompts.embeds.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model.train()(pixel_values, labels=labels).loss.backward()
    optimizer.step()
    # Saved straight from training mode, without an evaluation in between.
    model.save_pretrained(tmp_path)
    loaded = CLIPKOAForImageClassification.from_pretrained(tmp_path)
    assert (loaded.grade_prompts.embeds - before).abs().max() > 1e-3
    torch.testing.assert_close(loaded.grade_prompts.embeds, model.get_grade_embeds())


def test_editing_prompts_refreshes_the_grade_embeddings(make_model, tokenizer):
    model = make_model()
    before = model.grade_prompts.embeds.clone()
    model.set_prompts([["healthy"], ["perhaps"], ["mild"], ["worse"], ["end stage"]], tokenizer)
    assert (model.grade_prompts.embeds - before).abs().max() > 1e-3
    assert model.config.prompt_shape == list(model.grade_prompts.input_ids.shape)


def test_prompts_edited_in_a_saved_config_are_tokenised_anew(make_model, tokenizer, tmp_path):
    make_model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = CLIPKOAConfig.from_pretrained(tmp_path)
    config.prompts = PROMPT_SETS["standard"]
    loaded = CLIPKOAForImageClassification.from_pretrained(tmp_path, config=config)
    expected = make_model()
    expected.set_prompts(PROMPT_SETS["standard"], tokenizer)
    torch.testing.assert_close(loaded.grade_prompts.embeds, expected.grade_prompts.embeds)


def test_prompts_edited_behind_the_models_back_are_not_saved(make_model, tmp_path):
    model = make_model()
    model.config.prompts = PROMPT_SETS["standard"]
    with pytest.raises(ValueError, match="set_prompts"):
        model.save_pretrained(tmp_path)


def test_a_grade_embedding_is_the_renormalised_mean_of_its_prompts(make_model, tokenizer):
    model = make_model().eval()
    texts = model.config.prompts[3]
    single = []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        embed = model.text_projection(model.text_model(input_ids=ids).pooler_output)
        single.append(F.normalize(embed, dim=-1))
    expected = F.normalize(torch.cat(single).mean(0), dim=-1)
    torch.testing.assert_close(model.grade_prompts.embeds[3], expected, atol=1e-5, rtol=1e-4)


def test_prompts_are_trimmed_to_the_longest(make_model, tokenizer):
    model = make_model()
    lengths = [len(tokenizer(text)["input_ids"]) for texts in model.config.prompts for text in texts]
    assert model.grade_prompts.input_ids.shape == (len(lengths), max(lengths))


def test_every_parameter_gets_a_gradient(make_model, pixel_values, labels):
    """DDP stops on a parameter without one."""
    for settings in ({}, {"classifier_weight": 0.0}, {"symmetry": False, "consistency_weight": 0.0}):
        model = make_model(**settings).train()
        model(pixel_values, labels=labels).loss.backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_grading_needs_the_class_token_alone(make_model, pixel_values):
    model = make_model().eval()
    expected = model(pixel_values, flip_average=False).logits
    torch.testing.assert_close(model.grade_views(pixel_values), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="prepare X-rays with its image processor"):
        model.grade_views(pixel_values[:, :, 1:])


def test_bf16_autocast_keeps_logits_precise(make_model, pixel_values, labels):
    model = make_model().train()
    full = model(pixel_values, labels=labels)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(pixel_values, labels=labels)
    half.loss.backward()
    assert half.logits.dtype == half.classifier_logits.dtype == torch.float32
    torch.testing.assert_close(half.logits, full.logits, atol=0.15, rtol=0.02)


def test_sdpa_and_eager_attention_agree(make_model, pixel_values):
    model = make_model().eval()
    assert model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        sdpa = model(pixel_values).logits
        model.set_attn_implementation("eager")
        torch.testing.assert_close(model(pixel_values).logits, sdpa, atol=1e-5, rtol=1e-4)


def test_gradient_checkpointing_changes_no_gradient(make_model, pixel_values, labels):
    plain, checkpointed = make_model().train(), make_model().train()
    checkpointed.gradient_checkpointing_enable()
    for model in (plain, checkpointed):
        model(pixel_values, labels=labels).loss.backward()
    weights = zip(plain.named_parameters(), checkpointed.parameters(), strict=True)
    for (name, expected), parameter in weights:
        torch.testing.assert_close(parameter.grad, expected.grad, msg=name)


def test_compile(make_model, pixel_values, labels):
    model = make_model().eval()
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(pixel_values).logits, model(pixel_values).logits, atol=1e-5, rtol=1e-4)
    loss = compiled.train()(pixel_values, labels=labels).loss
    loss.backward()
    torch.testing.assert_close(loss, model(pixel_values, labels=labels).loss, atol=1e-4, rtol=1e-4)


def test_grading_compiles(make_model, pixel_values):
    model = make_model().eval()
    compiled = torch.compile(model.grade_views, backend="aot_eager")
    torch.testing.assert_close(compiled(pixel_values), model.grade_views(pixel_values), atol=1e-5, rtol=1e-4)


def test_what_is_recorded_of_blocks_is_of_both_views_together(make_model, pixel_values, labels):
    """Also where the blocks would see one view at a time."""
    model = make_model().train()
    choose_kernels(model, torch.device("cpu"))
    for asked in ({}, {"output_hidden_states": True}):
        output = model(pixel_values, labels=labels, **asked)
    assert [len(tokens) for tokens in output.hidden_states] == [12] * 3


def test_tuple_output(make_model, pixel_values):
    model = make_model().eval()
    with torch.no_grad():
        assert torch.equal(model(pixel_values, return_dict=False)[0], model(pixel_values).logits)


def test_new_classifier_starts_small(make_model):
    model = make_model()
    assert 0.01 < model.classifier.weight.std() < 0.03
    assert not model.classifier.bias.any()


@pytest.mark.parametrize("grade", [-1, 5, 7])
def test_grades_out_of_range_are_refused(make_model, pixel_values, grade):
    with pytest.raises(ValueError, match=f"grade {grade}.*0 to 4"):
        make_model()(pixel_values[:1], labels=torch.tensor([grade]))


@pytest.mark.parametrize("shape", [(1, 3, 48, 48), (1, 1, 32, 32), (3, 32, 32)])
def test_wrong_image_sizes_are_refused(make_model, shape):
    with pytest.raises(ValueError, match=r"\(N, 3, 32, 32\)"):
        make_model()(torch.zeros(shape))


def test_wrong_configurations_are_refused(make_model, tokenizer):
    with pytest.raises(ValueError, match="js, kl, mse"):
        CLIPKOAConfig(consistency="cosine")
    with pytest.raises(ValueError, match="consistency_weight=-1"):
        CLIPKOAConfig(consistency_weight=-1)
    with pytest.raises(ValueError, match="4 lists for 5 labels"):
        CLIPKOAConfig(prompts=PROMPT_SETS["standard"][:4])
    with pytest.raises(ValueError, match="6 lists for 5 labels"):
        make_model().set_prompts([*PROMPT_SETS["standard"], ["more"]], tokenizer)
    with pytest.raises(ValueError, match=r"prompts\[1\]"):
        CLIPKOAConfig(prompts=[["a"], [], ["c"], ["d"], ["e"]])
    with pytest.raises(ValueError, match=r"prompts\[0\]"):
        CLIPKOAConfig(prompts=["a", "b", "c", "d", "e"])


def test_prompts_longer_than_the_text_tower_are_refused(make_model, tokenizer):
    with pytest.raises(ValueError, match="reads 77"):
        make_model().set_prompts([["q z " * 80], *PROMPT_SETS["standard"][1:]], tokenizer)


def test_a_model_without_prompts_says_so(pixel_values, make_model):
    fresh = CLIPKOAForImageClassification(CLIPKOAConfig(**_towers(make_model().config)))
    with pytest.raises(ValueError, match="set_prompts"):
        fresh.eval()(pixel_values)


def _towers(config) -> dict:
    return {
        "text_config": config.text_config.to_dict(),
        "vision_config": config.vision_config.to_dict(),
        "projection_dim": config.projection_dim,
    }
