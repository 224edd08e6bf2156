"""The losses of CLIP-KOA (Jeong & Lee 2025, arXiv 2504.19443), as pure functions of logits and grades."""

import math

import torch
import torch.nn.functional as F

from .tensors_clip_koa import truth

_DISTRIBUTION_TOLERANCE = 1e-2  # what bf16 rounds off a sum of shares


def symmetry_loss(logits: torch.Tensor, flipped_logits: torch.Tensor | None, labels: torch.Tensor) -> torch.Tensor:
    """Symmetry loss of the paper: cross-entropy on the X-ray plus cross-entropy on its mirror image.

    Args:
        logits: of the X-rays, (N, K).
        flipped_logits: of their mirror images, (N, K); `None` leaves plain cross-entropy on the X-rays.
        labels: grades, (N,), each in 0..K-1; or distributions over the grades, (N, K), see [`soft_labels`].

    Returns:
        Scalar, the mean over the batch.
    """
    loss = F.cross_entropy(logits, labels)
    if flipped_logits is not None:
        loss = loss + F.cross_entropy(flipped_logits, labels)
    return loss


def consistency_loss(logits: torch.Tensor, flipped_logits: torch.Tensor, kind: str) -> torch.Tensor:
    """How far the grade distribution of the mirror image is from that of the X-ray; 0 where they are equal.

    The paper does not give its form. These are our choice, all symmetric in the two views: `"mse"`, squared error
    summed over the grades; `"kl"`, the mean of the Kullback-Leibler divergences in both directions; `"js"`, the
    Jensen-Shannon divergence (at most ln 2). `"similarity"` compares the similarities themselves, S and Sᴴ in the
    paper's figure, by squared error summed over the grades; it is 0 only where these are equal.

    Args:
        logits, flipped_logits: (N, K); of `"similarity"` the cosine similarities, that is the logits over their scale.
        kind: `"mse"`, `"kl"`, `"js"` or `"similarity"`.

    Returns:
        Scalar, the mean over the batch (nats for `"kl"` and `"js"`).

    Raises:
        ValueError: unknown kind.
    """
    if kind == "similarity":
        return (logits - flipped_logits).square().sum(-1).mean()
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
        raise ValueError(f"consistency={kind!r} is not known: use one of js, kl, mse, similarity.")
    return per_image.mean()


def soft_labels(
    labels: torch.Tensor, num_labels: int, label_smoothing: float = 0.0, ordinal_smoothing: float = 0.0
) -> torch.Tensor:
    """Distributions over the grades in place of one grade, for readers often differ by one.

    Args:
        labels: grades, (N,), each in 0..num_labels-1.
        num_labels: K.
        label_smoothing: probability shared out evenly over all grades (Szegedy et al. 2016, arXiv 1512.00567).
        ordinal_smoothing: width, in grades, of a Gaussian around the grade, over which the rest is shared out (soft
            ordinal labels in the manner of Diaz & Marathe 2019); 0: all of it on the grade.

    Returns:
        (N, K) fp32, rows sum to 1.
    """
    grades = torch.arange(num_labels, device=labels.device)
    if ordinal_smoothing > 0:
        distance = (grades - labels.unsqueeze(1)).float()  # (N, K)
        target = (-0.5 * (distance / ordinal_smoothing).square()).softmax(-1)
    else:
        target = F.one_hot(labels, num_labels).float()
    return (1 - label_smoothing) * target + label_smoothing / num_labels


def as_targets(labels: torch.Tensor, count: int, num_labels: int) -> torch.Tensor:
    """Labels as `F.cross_entropy` takes them.

    Args:
        labels: grades, (N,), of any integer type, each in 0..K-1; or distributions over the grades, (N, K).
        count: N.
        num_labels: K.

    Returns:
        (N,) int64, or (N, K) fp32.

    Raises:
        ValueError: labels that are neither; the message says what would be right.
    """
    if not isinstance(labels, torch.Tensor):
        raise ValueError(f"labels are {type(labels).__name__}: give a tensor of grades, ({count},).")
    if labels.shape not in ((count,), (count, num_labels)):
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}: grades ({count},) or distributions over them "
            f"({count}, {num_labels}) belong to these X-rays."
        )
    if labels.ndim == 1:
        if labels.is_floating_point() or labels.is_complex():
            raise ValueError(
                f"labels are {labels.dtype}: grades are integers, and distributions over them ({count}, {num_labels})."
            )
        labels = labels.long()
        valid = (labels >= 0) & (labels < num_labels)
        if truth(valid) is False:
            wrong = labels[~valid][0].item()
            raise ValueError(f"labels hold the grade {wrong}: KL grades are 0 to {num_labels - 1}.")
        return labels
    labels = labels.float()
    valid = (labels >= 0).all(1) & ((labels.sum(1) - 1).abs() < _DISTRIBUTION_TOLERANCE)  # False for NaN
    if truth(valid) is False:
        wrong = [round(share, 4) for share in labels[~valid][0].tolist()]
        raise ValueError(f"labels hold {wrong}: a distribution over the grades has no negative share and sums to 1.")
    return labels
