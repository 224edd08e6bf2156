"""A vision tower to which an X-ray and its mirror image are the same, whatever it learns."""

import math

import torch

from modeling_clip_koa import CLIPKOAForImageClassification


@torch.no_grad()
def make_mirror_symmetric(model: CLIPKOAForImageClassification) -> None:
    """Makes the patches' kernels and the positions mirror-symmetric, and keeps them so by not training them.

    Mirroring an X-ray then only reorders its patch tokens. Blocks treat tokens alike whatever their order, the text
    head reads the class token and the linear head the mean of the patches, so every logit of the mirror image is the
    X-ray's, to rounding. Given up is whatever is odd within a patch: a bone edge facing left is one facing right.

    The symmetric kernels and positions are the closest ones to those that were there: means with their mirror image.
    """
    embeddings = model.vision_model.embeddings
    kernels = embeddings.patch_embedding.weight  # (hidden, 3, patch, patch)
    kernels.copy_((kernels + kernels.flip(-1)) / 2)
    side = math.isqrt(embeddings.num_patches)
    positions = embeddings.position_embedding.weight[1:].view(side, side, -1)  # the class token comes first
    positions.copy_((positions + positions.flip(1)) / 2)
    embeddings.patch_embedding.requires_grad_(False)
    embeddings.position_embedding.requires_grad_(False)
