"""Timing by turns, the matrix-product peak, and the models that are measured."""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from clip_koa.training.tokenizer import build_prompt_tokenizer
from modeling_clip_koa import PROMPT_SETS, CLIPKOAConfig, CLIPKOAForImageClassification

# Sizes of openai/clip-vit-base-patch16, and of the model that configs/small.yaml trains.
MODELS = {
    "vit_b_16": {
        "vision_config": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                          "num_attention_heads": 12, "image_size": 224, "patch_size": 16},
        "text_config": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
                        "num_attention_heads": 8, "vocab_size": 49408},
        "projection_dim": 512,
    },
    "small": {
        "vision_config": {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12,
                          "num_attention_heads": 6, "image_size": 224, "patch_size": 14, "hidden_act": "gelu"},
        "text_config": {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4,
                        "num_attention_heads": 3, "hidden_act": "gelu"},
        "projection_dim": 256,
    },
}  # fmt: skip


_PRODUCT_SIDES = (1024, 2048, 4096)


def build_model(name: str, prompts: str) -> CLIPKOAForImageClassification:
    """A model of `MODELS` with random weights, which cost the same, and a tokenizer about as fine as CLIP's own."""
    tokenizer = build_prompt_tokenizer(PROMPT_SETS[prompts], 77)
    sizes = MODELS[name]
    text_config = {
        "vocab_size": len(tokenizer),
        **sizes["text_config"],
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    model = CLIPKOAForImageClassification(CLIPKOAConfig(**{**sizes, "text_config": text_config}))
    model.set_prompts(PROMPT_SETS[prompts], tokenizer)
    return model


def device() -> str:
    """Where the benchmark runs."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def autocast(precision: str) -> torch.autocast:
    """The context of a precision, `bf16` or `fp32`."""
    return torch.autocast(device(), torch.bfloat16, enabled=precision == "bf16")


def synchronize() -> None:
    """Waits for the accelerator, so that a clock can be read."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(actions: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Seconds of each action, taken in turn after one warm-up, so that drift of the machine's speed hits all alike."""
    seconds = {name: [] for name in actions}
    for round_number in tqdm(range(rounds + 1), desc="measuring", unit="round"):
        for name, action in actions.items():
            synchronize()
            started = time.perf_counter()
            action()
            synchronize()
            if round_number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(numerator: list[float], denominator: list[float], factor: float = 1.0) -> dict[str, float]:
    """Median, least and greatest of the rounds' ratios, times `factor`."""
    values = [factor * a / b for a, b in zip(numerator, denominator, strict=True)]
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def matrix_product(precision: str) -> tuple[Callable, float]:
    """A product of two square matrices, the yardstick of utilisation, and its floating-point operations.

    Of the sides tried the one at which this machine computes fastest.
    """
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    products = {}
    for side in _PRODUCT_SIDES:
        left, right = (torch.randn(side, side, device=device()).to(kind) for _ in range(2))
        products[2.0 * side**3] = lambda left=left, right=right: F.linear(left, right)
    seconds = measure(products, rounds=3)
    flops = max(products, key=lambda count: count / statistics.median(seconds[count]))
    return products[flops], flops


def count_flops(action: Callable) -> float:
    """Floating-point operations of the matrix products, convolutions and attention in `action`."""
    with FlopCounterMode(display=False) as counter:
        action()
    return float(counter.get_total_flops())
