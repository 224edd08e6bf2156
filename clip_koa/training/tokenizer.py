"""A small tokenizer for text towers trained from scratch: CLIP's byte-level BPE over the words of the prompts."""

import json
import re
import tempfile
from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizerFast

START, END = "<|startoftext|>", "<|endoftext|>"


def build_prompt_tokenizer(prompts: list[list[str]], max_length: int) -> CLIPTokenizerFast:
    """Builds a CLIP tokenizer whose merges spell the prompts' words and whose bytes spell any other text.

    It is built by rule rather than trained: the same prompts give the same tokens on every process and machine.

    Args:
        prompts: for each grade, a list of descriptions.
        max_length: positions of the text tower, where longer texts are cut.
    """
    words = sorted({word for texts in prompts for text in texts for word in re.findall(r"[a-z]+", text.lower())})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = dict.fromkeys([*alphabet, *(letter + "</w>" for letter in alphabet)])
    merges = {}
    for word in words:
        prefix, *rest = [*word[:-1], word[-1] + "</w>"]
        for letter in rest:
            merges[f"{prefix} {letter}"] = None
            prefix += letter
            tokens[prefix] = None
    vocabulary = {token: index for index, token in enumerate([*tokens, START, END])}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        Path(folder, "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
        return CLIPTokenizerFast.from_pretrained(folder, model_max_length=max_length)
