"""Drop path: whole blocks of the vision tower skipped at random while training."""

import numpy as np
import torch


class DropPath:
    """Stochastic depth (Huang et al. 2016, arXiv 1603.09382) on the blocks of CLIP's vision tower.

    A forward hook on each block, so the model's own code stays CLIP's. What is skipped depends only on the seed, the
    epoch and the X-ray's index, and is the same for an X-ray and its mirror image, which then differ by nothing else.

    Args:
        layers: the tower's blocks, lowest first.
        rate: chance that an X-ray skips the last block; it rises linearly from 0 at the first.
        frozen: lowest blocks that are never skipped.
        seed: of the run.
    """

    def __init__(self, layers: torch.nn.ModuleList, rate: float, frozen: int, seed: int):
        self.rates = np.linspace(0, rate, len(layers))
        self.rates[:frozen] = 0
        self.seed = seed
        self.factors = None  # (blocks, N), on what a block adds; None: nothing is skipped
        if rate > 0:
            for number, layer in enumerate(layers):
                if self.rates[number] > 0:
                    layer.register_forward_hook(self._hook(number))

    def draw(self, indices: torch.Tensor, epoch: int) -> None:
        """Draws for the X-rays (N,) of the next training batch."""
        if not self.rates.any():
            return
        rows = [
            np.random.default_rng((self.seed, epoch, index, 1)).random(len(self.rates)) for index in indices.tolist()
        ]
        kept = np.stack(rows, axis=1) >= self.rates[:, None]
        self.factors = torch.tensor(kept / (1 - self.rates[:, None]), dtype=torch.float32, device=indices.device)

    def _hook(self, number: int):
        def scale_what_the_block_adds(layer, inputs, output):
            if not layer.training or self.factors is None:
                return output
            hidden = output[0] if isinstance(output, tuple) else output  # transformers 4 gives a tuple
            factors = self.factors[number].to(hidden.dtype)
            factors = factors.repeat(len(hidden) // len(factors)).view(-1, 1, 1)  # both views alike
            hidden = inputs[0] + factors * (hidden - inputs[0])
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return scale_what_the_block_adds
