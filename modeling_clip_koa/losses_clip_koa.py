"""The losses of CLIP-KOA (Jeong & Lee 2025, arXiv 2504.19443), as pure functions of logits and grades."""

import math

import torch
import torch.nn.functional as F


def symmetry_loss(logits: torch.Tensor, flipped_logits: torch.Tensor | None, labels: torch.Tensor) -> torch.Tensor:
    """Symmetry loss of the paper: cross-entropy on the X-ray plus cross-entropy on its mirror image.

    Args:
        logits: of the X-rays, (N, K).
        flipped_logits: of their mirror images, (N, K); `None` leaves plain cross-entropy on the X-rays.
        labels: grades, (N,), each in 0..K-1.

    Returns:
        Scalar, the mean over the batch.
    """
    loss = F.cross_entropy(logits, labels)
    if flipped_logits is not None:
        loss = loss + F.cross_entropy(flipped_logits, labels)
    return loss


def consistency_loss(logits: torch.Tensor, flipped_logits: torch.Tensor, kind: str) -> torch.Tensor:
    """How far the grade distribution of the mirror image is from that of the X-ray; 0 where they are equal.

    The paper does not give its form. These three are our choice, all symmetric in the two views:
    `"mse"`, squared error summed over the grades; `"kl"`, the mean of the Kullback-Leibler divergences in both
    directions; `"js"`, the Jensen-Shannon divergence (at most ln 2).

    Args:
        logits, flipped_logits: (N, K).
        kind: `"mse"`, `"kl"` or `"js"`.

    Returns:
        Scalar, the mean over the batch (nats for `"kl"` and `"js"`).

    Raises:
        ValueError: unknown kind.
    """
    log_p, log_q = logits.log_softmax(-1), flipped_logits.log_softmax(-1)  # (N, K)
    p, q = log_p.exp(), log_q.exp()
    if kind == "mse":
        per_image = (p - q).square().sum(-1)
    elif kind == "kl":
        per_image = 0.5 * ((p - q) * (log_p - log_q)).sum(-1)
    elif kind == "js":
        log_m = torch.logaddexp(log_p, log_q) - math.log(2.0)
        per_image = 0.5 * (p * (log_p - log_m) + q * (log_q - log_m)).sum(-1)
    else:
        raise ValueError(f"consistency={kind!r} is not known: use one of js, kl, mse.")
    return per_image.mean()
