"""Measure what the flip-consistency step costs, as ratios taken in one run.

    python benchmark.py --output benchmark.json

On the model of configs/clip_koa.yaml (CLIP ViT-B/16, here with random weights, which cost the same):
  both views / one view     the vision tower on X-ray and mirror image in one call, over the X-ray alone
  text tower / step         the text tower's forward and backward on the prompts, over the whole training step
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from tqdm.auto import tqdm

from clip_koa.memory import keep_freed_memory
from clip_koa.training.tokenizer import build_prompt_tokenizer
from modeling_clip_koa import PROMPT_SETS, CLIPKOAConfig, CLIPKOAForImageClassification

# Sizes of openai/clip-vit-base-patch16.
VIT_B_16 = {
    "vision_config": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                      "num_attention_heads": 12, "image_size": 224, "patch_size": 16},
    "text_config": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
                    "vocab_size": 49408},
    "projection_dim": 512,
}  # fmt: skip


def build_model(prompts: str) -> CLIPKOAForImageClassification:
    """CLIP ViT-B/16 with random weights and the prompts tokenised about as finely as CLIP's own tokenizer does."""
    tokenizer = build_prompt_tokenizer(PROMPT_SETS[prompts], 77)
    text_config = {
        **VIT_B_16["text_config"],
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    model = CLIPKOAForImageClassification(CLIPKOAConfig(**{**VIT_B_16, "text_config": text_config}))
    model.set_prompts(PROMPT_SETS[prompts], tokenizer)
    return model


def measure(actions: dict, rounds: int) -> dict[str, list[float]]:
    """Seconds of each action, taken in turn after one warm-up, so that drift of the machine's speed hits all alike."""
    seconds = {name: [] for name in actions}
    for round_number in tqdm(range(rounds + 1), desc="measuring", unit="round"):
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def main(arguments: list[str] | None = None) -> int:
    """Prints the two ratios with their spread; returns the exit status."""
    parser = argparse.ArgumentParser(description="Measure what the flip-consistency step costs.")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds after one warm-up (default: 5)")
    parser.add_argument("--prompts", choices=tuple(PROMPT_SETS), default="ensemble")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--system_allocator", action="store_true", help="leave the C library's allocator as it is")
    options = parser.parse_args(arguments)
    if not options.system_allocator:
        keep_freed_memory()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_model(options.prompts).to(device)
    size = VIT_B_16["vision_config"]["image_size"]
    pixel_values = torch.randn(options.batch_size, 3, size, size, device=device)
    labels = torch.arange(options.batch_size, device=device) % 5
    autocast = torch.autocast(device, torch.bfloat16, enabled=options.precision == "bf16")

    @torch.no_grad()
    def one_view():
        with autocast:
            model.vision_model(pixel_values=pixel_values)

    @torch.no_grad()
    def both_views():
        with autocast:
            model(pixel_values, flip_average=True)

    def step():
        with autocast:
            loss = model(pixel_values, labels=labels).loss
        loss.backward()
        model.zero_grad()

    def text_tower():
        with autocast:
            grade_embeds = model.get_grade_embeds()
        grade_embeds.sum().backward()
        model.zero_grad()

    # Apart, for a training step makes the next inference compute the grade embeddings anew.
    model.eval()
    seconds = measure({"one_view": one_view, "both_views": both_views}, options.rounds)
    model.train()
    seconds |= measure({"step": step, "text_tower": text_tower}, options.rounds)
    ratios = {
        "both views / one view": [b / a for a, b in zip(seconds["one_view"], seconds["both_views"], strict=True)],
        "text tower / step": [b / a for a, b in zip(seconds["step"], seconds["text_tower"], strict=True)],
    }
    print(f"CLIP ViT-B/16, batch {options.batch_size}, {options.precision}, {device}, prompts {options.prompts}")
    print(f"{'ratio':24}  {'median':>7}  {'min':>7}  {'max':>7}")
    for name, values in ratios.items():
        print(f"{name:24}  {statistics.median(values):7.3f}  {min(values):7.3f}  {max(values):7.3f}")
    if options.output:
        figures = {"options": {**vars(options), "output": str(options.output)}, "seconds": seconds, "ratios": ratios}
        options.output.write_text(json.dumps(figures, indent=2), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
