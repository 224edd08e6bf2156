"""A training step of CLIP-KOA against the loops it stands in for, and against the machine's peak."""

import copy
import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from transformers import CLIPForImageClassification, CLIPModel

from clip_koa.training.cpu_kernels import choose_kernels
from modeling_clip_koa import CLIPKOAForImageClassification, consistency_loss, symmetry_loss
from studies.benchmark.busy import answer, ask, serving
from studies.benchmark.measure import (
    autocast,
    build_model,
    count_flops,
    device,
    matrix_product,
    measure,
    ratio,
    synchronize,
)


def measure_views(name: str, batch_size: int, precision: str, prompts: str, rounds: int) -> dict:
    """What the mirror image and the text tower add.

    Returns:
        `both views / one view`: inference on X-rays and mirror images in one call, over the vision tower on the X-rays
        alone. `text tower / step`: the text tower's forward and backward on the prompts, over the training step.
    """
    model = build_model(name, prompts).to(device())
    pixel_values, labels = _batch(model, batch_size)

    @torch.no_grad()
    def one_view():
        with autocast(precision):
            model.vision_model(pixel_values=pixel_values)

    @torch.no_grad()
    def both_views():
        with autocast(precision):
            model(pixel_values, flip_average=True)

    def text_tower():
        with autocast(precision):
            grade_embeds = model.get_grade_embeds()
        grade_embeds.sum().backward()
        model.zero_grad()

    # Apart, for a training step makes the next inference compute the grade embeddings anew.
    model.eval()
    inference = measure({"one view": one_view, "both views": both_views}, rounds)
    model.train()
    step = clip_koa_step(model, batch_size, precision, optimizer=False)
    training = measure({"step": step, "text tower": text_tower}, rounds)
    return {
        "both views / one view": ratio(inference["both views"], inference["one view"]),
        "text tower / step": ratio(training["text tower"], training["step"]),
    }


def measure_training(name: str, batch_size: int, precision: str, prompts: str, rounds: int) -> dict:
    """Views per second of our step over those of the loops that a user would write instead, and utilisation.

    Returns:
        Ratios of views per second, ours first: to transformers' image-classification example at equal batch and
        precision, and each as configured by itself; to the naive CLIP-KOA step at equal batch and precision, and ours
        as configured to it in fp32. `of the peak`: floating-point operations of our step per second, over those of a
        matrix product of the same precision.
    """
    ours = build_model(name, prompts).to(device()).train()
    example = CLIPForImageClassification(_stock_config(ours)).to(device()).train()
    naive = CLIPModel(_stock_config(ours)).to(device()).train()
    product, product_flops = matrix_product(precision)
    steps = {
        "ours": clip_koa_step(ours, batch_size, precision),
        "example": example_step(example, batch_size, precision),
        "naive": naive_step(naive, ours, batch_size, precision),
        "ours, defaults": clip_koa_step(ours, OUR_BATCH_SIZE, "bf16"),
        "example, defaults": example_step(example, EXAMPLE_BATCH_SIZE, "fp32"),
        "naive, fp32": naive_step(naive, ours, batch_size, "fp32"),
        "matrix product": product,
    }
    flops = count_flops(steps["ours"])
    seconds = measure(steps, rounds)

    def views(ours, views_ours, other, views_other):
        return ratio(seconds[other], seconds[ours], views_ours / views_other)

    both, default = 2 * batch_size, 2 * OUR_BATCH_SIZE
    return {
        "views/s, ours / example": views("ours", both, "example", batch_size),
        "views/s, ours / example, defaults": views("ours, defaults", default, "example, defaults", EXAMPLE_BATCH_SIZE),
        "views/s, ours / naive": views("ours", both, "naive", both),
        "views/s, our defaults / naive fp32": views("ours, defaults", default, "naive, fp32", both),
        "of the peak": ratio(seconds["matrix product"], seconds["ours"], flops / product_flops),
    }


def measure_batches(name: str, precision: str, prompts: str, rounds: int) -> dict:
    """Views per second of our step over the naive one's at equal precision, for each batch size of `BATCH_SIZES`."""
    ours = build_model(name, prompts).to(device()).train()
    naive = CLIPModel(_stock_config(ours)).to(device()).train()
    figures = {}
    for size in BATCH_SIZES:
        steps = {"ours": clip_koa_step(ours, size, precision), "naive": naive_step(naive, ours, size, precision)}
        seconds = measure(steps, rounds)
        figures[f"batch {size}, views/s, ours / naive"] = ratio(seconds["naive"], seconds["ours"])
    return figures


def measure_ways(name: str, batch_size: int, prompts: str, rounds: int) -> dict:
    """Views per second of our step on a CPU, computed in other ways, over one process with all threads.

    Returns:
        Ratios over the step in bf16: `fp32`; `compiled`, the step of the model as transformers has it, by
        `torch.compile`; `a process for each core`, each with its share of the batch and one thread, and without the
        exchange of gradients, which would cost them more. And `of the peak`, as `measure_training` has it.
    """
    model, stock = (build_model(name, prompts).train() for _ in range(2))
    product, product_flops = matrix_product("bf16")
    compiled = torch.compile(stock)
    pixel_values, labels = _batch(stock, batch_size)
    steps = {
        "bf16": clip_koa_step(model, batch_size, "bf16"),
        "fp32": clip_koa_step(copy.deepcopy(model), batch_size, "fp32"),
        "compiled": _trainer(stock, lambda: compiled(pixel_values, labels=labels).loss, "bf16", fused=True),
        "matrix product": product,
    }
    flops = count_flops(steps["bf16"])
    cores = len(os.sched_getaffinity(0))
    one_thread = {str(core): {"OMP_NUM_THREADS": "1"} for core in range(cores)}
    with serving(one_thread, "training in bf16", name, batch_size // cores) as processes:

        def one_each():
            for process in processes.values():
                ask(process)
            for process in processes.values():
                answer(process)

        seconds = measure({**steps, "a process for each core": one_each}, rounds)
    ways = ("fp32", "compiled", "a process for each core")
    return {f"views/s, {way} / bf16": ratio(seconds["bf16"], seconds[way]) for way in ways} | {
        "of the peak": ratio(seconds["matrix product"], seconds["bf16"], flops / product_flops)
    }


def profile_training(name: str, batch_size: int, precision: str, prompts: str, steps: int) -> dict:
    """What our step spends its time on: shares of a profile's time, by kind of operation, greatest first."""
    step = clip_koa_step(build_model(name, prompts).to(device()).train(), batch_size, precision)
    step()
    with torch.profiler.profile() as profile:
        for _ in range(steps):
            step()
        synchronize()
    shares = dict.fromkeys([*_OPERATIONS, "all else"], 0.0)
    for event in profile.key_averages():
        kind = next((kind for kind, names in _OPERATIONS.items() if event.key.startswith(names)), "all else")
        shares[kind] += event.self_device_time_total if device() == "cuda" else event.self_cpu_time_total
    whole = sum(shares.values())
    return {kind: {"share": shares[kind] / whole} for kind in sorted(shares, key=shares.get, reverse=True)}


BATCH_SIZES = (4, 8, 16, 32, 64)
# Kinds of operations, and how their names begin.
_OPERATIONS = {
    "matrix products and convolutions": (
        "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::mkldnn_conv", "aten::convolution",
    ),
    "fused attention": ("aten::_scaled_dot_product",),
    "copies and casts": ("aten::copy_", "aten::cat", "aten::clone", "aten::_to_copy"),
    "softmax": ("aten::_softmax", "aten::_log_softmax"),
    "activations": ("aten::gelu", "aten::sigmoid", "aten::silu"),
    "norms": ("aten::native_layer_norm",),
    "optimizer": ("aten::_fused_adamw", "aten::linalg_vector_norm", "aten::_foreach"),
    "additions, products and sums": ("aten::add", "aten::mul", "aten::sum", "aten::div", "aten::sub"),
}  # fmt: skip

# Of run_image_classification_no_trainer.py; it trains in fp32 where nothing else is asked for.
EXAMPLE_BATCH_SIZE = 8
# Of configs/clip_koa.yaml, which trains in bf16 where the hardware has it.
OUR_BATCH_SIZE = 32


def _batch(model, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    size = model.config.vision_config.image_size
    pixel_values = torch.randn(batch_size, 3, size, size, device=device())
    return pixel_values, torch.arange(batch_size, device=device()) % 5


def _stock_config(model: CLIPKOAForImageClassification):
    config = model.config.to_dict()
    return CLIPModel.config_class(
        text_config=config["text_config"],
        vision_config=config["vision_config"],
        projection_dim=config["projection_dim"],
        num_labels=5,
    )


def _trainer(model, loss: Callable, precision: str, optimizer: bool = True, fused: bool = False) -> Callable:
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=fused) if optimizer else None

    def step():
        with autocast(precision):
            value = loss()
        value.backward()
        if adamw:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adamw.step()
        model.zero_grad()

    return step


def clip_koa_step(model, batch_size: int, precision: str, optimizer: bool = True) -> Callable:
    """Our step: both views in one call, the text tower once on the prompts, the trainer's attention and optimizer."""
    choose_kernels(model, torch.device(device()))
    pixel_values, labels = _batch(model, batch_size)
    return _trainer(model, lambda: model(pixel_values, labels=labels).loss, precision, optimizer, fused=True)


def example_step(model: CLIPForImageClassification, batch_size: int, precision: str) -> Callable:
    """The step of transformers' image-classification example without Trainer: one view, cross-entropy, AdamW."""
    pixel_values, labels = _batch(model, batch_size)
    return _trainer(model, lambda: model(pixel_values=pixel_values, labels=labels).loss, precision)


def naive_step(model: CLIPModel, ours: CLIPKOAForImageClassification, batch_size: int, precision: str) -> Callable:
    """CLIP-KOA as first written: two vision passes, and the caption of each X-ray through the text tower."""
    pixel_values, labels = _batch(model, batch_size)
    captions = ours.grade_prompts.input_ids[: ours.num_labels][labels]  # (N, L)
    # The embedding of a grade is that of the first X-ray that has it.
    first = list(range(min(batch_size, ours.num_labels)))

    def loss():
        texts = F.normalize(model.text_projection(model.text_model(input_ids=captions).pooler_output), dim=-1)
        logits = []
        for view in (pixel_values, pixel_values.flip(-1)):
            images = model.visual_projection(model.vision_model(pixel_values=view).pooler_output)
            logits.append(model.logit_scale.exp() * F.normalize(images, dim=-1) @ texts[first].t())
        return symmetry_loss(*logits, labels) + consistency_loss(*logits, "js")

    return _trainer(model, loss, precision)
