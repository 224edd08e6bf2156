"""What a checkpoint keeps of its training X-rays, to tell whether an image is like them: no X-ray, no name."""

from collections.abc import Iterable

import torch
from sklearn.covariance import LedoitWolf

from modeling_clip_koa import CLIPKOAForImageClassification
from modeling_clip_koa.calibration_clip_koa import Typicality, mean_patch

_MOST_DISTANCES = 1001  # of the unseen X-rays that are kept; of more, as many quantiles


def typicality_block(model: CLIPKOAForImageClassification) -> int:
    """The block whose patches are looked at: the last of the tower's lower half.

    Of six blocks tried on real X-rays it told all kinds of other images best (docs/typicality.md).
    """
    return max(0, model.config.vision_config.num_hidden_layers // 2 - 1)


@torch.inference_mode()
def collect_features(model: CLIPKOAForImageClassification, batches: Iterable[dict]) -> torch.Tensor:
    """The features (N, D) of all X-rays in batches of `pixel_values` (n, 3, H, W)."""
    model.eval()
    found, count = [], typicality_block(model) + 1
    for batch in batches:
        pixel_values = batch["pixel_values"].to(model.device)
        views = torch.cat([pixel_values, pixel_values.flip(-1)])
        image, mirror = mean_patch(model.tokens_after(views, count)).chunk(2)
        found.append(((image + mirror) / 2).cpu())
    return torch.cat(found)


def fit_typicality(block: int, training: torch.Tensor, unseen: torch.Tensor) -> Typicality:
    """Fits mean and covariance (shrunk, Ledoit & Wolf 2004) to training features (N, D), distances to unseen ones."""
    fitted = LedoitWolf().fit(training.double().numpy())
    mean = torch.from_numpy(fitted.location_).float()
    precision = torch.from_numpy(fitted.precision_).float()
    distances = Typicality(block, mean, precision, torch.zeros(1)).measure(unseen)
    places = torch.linspace(0, 1, min(_MOST_DISTANCES, len(distances)))
    return Typicality(block, mean, precision, torch.quantile(distances, places))
