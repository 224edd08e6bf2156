"""All that transformers 4 needs and transformers 5 does not."""

import torch
import transformers

_IS_4 = int(transformers.__version__.split(".")[0]) < 5


def tokens_of(output: torch.Tensor | tuple) -> torch.Tensor:
    """The tokens (N, T, D) that a block of a tower gives: alone in transformers 5, first of a tuple in 4."""
    return output[0] if isinstance(output, tuple) else output


def block_output(tokens: torch.Tensor) -> torch.Tensor | tuple:
    """Tokens as a tower expects them of a block."""
    return (tokens,) if _IS_4 else tokens


def mismatched_names(info: dict) -> list[str]:
    """Names of the weights that have another size, sorted, out of the info that `from_pretrained` gives."""
    # Names in transformers 4, names with both sizes in 5.
    return sorted(key if isinstance(key, str) else key[0] for key in info["mismatched_keys"])
