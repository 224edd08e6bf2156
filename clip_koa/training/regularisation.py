"""What the vision tower does without at random while training: whole blocks (drop path), and patches."""

import math

import numpy as np
import torch

from clip_koa.data.randomness import stream


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
        rows = [stream("drop path", self.seed, epoch, index).random(len(self.rates)) for index in indices.tolist()]
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


# Where the joint line lies in an X-ray cropped around the knee, as a share of its height, and how far (standard
# deviation) what KL grades look at, joint space and bone margins, spreads from it. From the mean of real X-rays.
JOINT_LINE, JOINT_SPREAD = 0.57, 0.2


class PatchDropout:
    """PatchDropout (Liu et al. 2022, arXiv 2208.07220) that spares the joint: a share of the patches is left out.

    Rows near the joint line are left out less often: a patch is kept in proportion to a Gaussian of its row's distance
    from it. A forward hook on the embeddings, so the blocks see fewer tokens and the model's own code stays CLIP's.
    What is left out depends only on the seed, the epoch and the X-ray's index; the mirror image loses the mirrored
    patches.

    Args:
        embeddings: of CLIP's vision tower; the class token comes first.
        rate: share of the patches that is left out.
        seed: of the run.
    """

    def __init__(self, embeddings: torch.nn.Module, rate: float, seed: int):
        self.rate, self.seed = rate, seed
        self.side = math.isqrt(embeddings.num_patches)  # of the grid of patches
        self.kept = None  # (N, tokens), numbers of the tokens that stay; None: all do
        rows = (np.arange(self.side) + 0.5) / self.side
        self.log_weights = np.repeat(-0.5 * ((rows - JOINT_LINE) / JOINT_SPREAD) ** 2, self.side)
        if rate > 0:
            embeddings.register_forward_hook(self._leave_out)

    def draw(self, indices: torch.Tensor, epoch: int) -> None:
        """Draws for the X-rays (N,) of the next training batch."""
        if self.rate == 0:
            return
        count = max(1, round(len(self.log_weights) * (1 - self.rate)))
        kept = []
        for index in indices.tolist():
            # The largest sums of log weight and Gumbel noise are a weighted draw without replacement.
            noise = stream("patch dropout", self.seed, epoch, index).gumbel(size=len(self.log_weights))
            kept.append(np.sort(np.argsort(self.log_weights + noise)[-count:]))
        self.kept = torch.tensor(np.stack(kept), device=indices.device)

    def _leave_out(self, embeddings, inputs, output):
        if not embeddings.training or self.kept is None:
            return output
        kept = self.kept
        if len(output) > len(kept):  # the mirror images follow the X-rays
            kept = torch.cat([kept, kept + self.side - 1 - 2 * (kept % self.side)])
        class_token = torch.zeros_like(kept[:, :1])
        tokens = torch.cat([class_token, kept + 1], dim=1)
        return output.gather(1, tokens[..., None].expand(-1, -1, output.shape[-1]))
