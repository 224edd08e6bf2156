"""What a checkpoint keeps of its training X-rays, to tell whether an image is like them: no X-ray, no name."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from datasets import Image
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from clip_koa.calibration.variations import show_otherwise, vary
from dataset_script.radiograph import read_stored_image
from modeling_clip_koa import WAYS, CLIPKOAForImageClassification, XrayPreprocessor
from modeling_clip_koa.appearance_clip_koa import measure_appearance
from modeling_clip_koa.calibration_clip_koa import Typicality, mean_patch

_MOST_DISTANCES = 1001  # of the unseen X-rays that are kept; of more, as many quantiles
VARIATIONS = 2  # of each X-ray
# Of what is drawn for training X-rays, for unseen ones, and for knees that are shown otherwise.
_SEEDS = (0, 1, 2)
_APART = 7  # how far on in the split the X-ray is that is squeezed beside one
_PENALTY = 0.01  # of the direction: the inverse of its strength
# Usual is what lies between these quantiles of the training X-rays, and this share of the way between them beyond.
_USUAL, _SLACK = (0.002, 0.998), 0.05
# Fewer pixels than this share of those that the training X-rays have are told; more never are.
_FEWER = 0.75
# A frame of less of the area, and metal of less than this measure, are never told.
_LEAST_FRAME, _LEAST_METAL = 0.04, 0.033
_ANY = 1e6  # beyond every measure


def typicality_block(model: CLIPKOAForImageClassification) -> int:
    """The block whose patches are looked at: the last of the tower's lower half.

    Of six blocks tried on real X-rays it told other images best (docs/notebook/typicality_trials.md).
    """
    return max(0, model.config.vision_config.num_hidden_layers // 2 - 1)


class _Varied(Dataset):
    """Variations of the X-rays of a split, or of knees as no frontal X-ray shows them, as the network takes them.

    Args:
        variations: of each X-ray.
        otherwise: whether each is first shown otherwise; then every second one is varied too.
    """

    def __init__(self, split, image_processor, variations: int, seed: int, otherwise: bool = False):
        self.split = split.cast_column("image", Image(decode=False))
        self.preprocess = XrayPreprocessor(image_processor)
        self.variations, self.seed, self.otherwise = variations, seed, otherwise

    def __len__(self) -> int:
        return len(self.split) * self.variations

    def __getitem__(self, place: int) -> dict:
        index, number = divmod(place, self.variations)
        picture = self._picture(index)
        if self.otherwise:
            other = self._picture((index + _APART) % len(self.split))
            picture = show_otherwise(picture, other, self.seed, number, index)
        if not self.otherwise or index % 2:
            picture = vary(picture, self.seed, number, index)
        return {"pixel_values": self.preprocess([picture])[0]}

    def _picture(self, index: int):
        return read_stored_image(self.split[index]["image"])


@torch.inference_mode()
def collect_features(model: CLIPKOAForImageClassification, batches: Iterable[dict]) -> torch.Tensor:
    """The features (N, D) of all X-rays in batches of `pixel_values` (n, 3, H, W)."""
    model.eval()
    found, count = [], typicality_block(model) + 1
    for batch in batches:
        pixel_values = batch["pixel_values"]
        views = torch.cat([pixel_values, pixel_values.flip(-1)])
        image, mirror = mean_patch(model.tokens_after(views, count)).chunk(2)
        found.append(((image + mirror) / 2).cpu())
    return torch.cat(found)


def fit_on_xrays(model, image_processor, training, unseen, count: int) -> Typicality:
    """Fits typicality to training X-rays as other machines and archives vary them, bounds to them as they are.

    Args:
        model: on its device.
        training, unseen: splits of the corpus; the distances are of `unseen`.
        count: of the X-rays of each that are taken, spread evenly.
    """
    training, unseen = _spread(training, count), _spread(unseen, count)

    def features(xrays, title, *options):
        batches = DataLoader(_Varied(xrays, image_processor, *options), batch_size=16)
        return collect_features(model, tqdm(batches, desc=title, unit="batch"))

    return fit_typicality(
        typicality_block(model),
        features(training, "training X-rays, varied", VARIATIONS, _SEEDS[0]),
        features(unseen, "unseen X-rays, varied", 1, _SEEDS[1]),
        fit_bounds(_pictures(training)),
        features(training, "shown otherwise", 1, _SEEDS[2], True),
    )


def _spread(split, count: int):
    return split.select(range(0, len(split), math.ceil(len(split) / count)))


def _pictures(split) -> Iterator:
    for row in split.cast_column("image", Image(decode=False)):
        yield read_stored_image(row["image"])


def fit_bounds(pictures: Iterable) -> torch.Tensor:
    """Between which values each of `WAYS` is usual, (W, 2), from training X-rays (mode L) as they are."""
    measures = [measure_appearance(picture) for picture in tqdm(pictures, desc="how they look", unit="X-ray")]
    bounds = []
    for way in WAYS:
        found = torch.tensor([measure[way] for measure in measures], dtype=torch.float64)
        low, high = found.quantile(torch.tensor(_USUAL, dtype=torch.float64)).tolist()
        slack = _SLACK * (high - low)
        bounds.append(
            {
                "resolution": (_FEWER * low, 1.0),
                "frame": (0.0, max(high + slack, _LEAST_FRAME)),
                "metal": (0.0, max(high + slack, _LEAST_METAL)),
            }.get(way, (low - slack, high + slack))
        )
    return torch.tensor(bounds)


def fit_typicality(
    block: int,
    training: torch.Tensor,
    unseen: torch.Tensor,
    bounds: torch.Tensor | None = None,
    others: torch.Tensor | None = None,
) -> Typicality:
    """Fits mean and covariance (shrunk, Ledoit & Wolf 2004) to training features (N, D), distances to unseen ones.

    Args:
        bounds: as `fit_bounds` gives them; default: nothing is unusual.
        others: features (M, D) of knees as no frontal X-ray shows them; default: there is no direction of these.
    """
    fitted = LedoitWolf().fit(training.double().numpy())
    mean = torch.from_numpy(fitted.location_).float()
    precision = torch.from_numpy(fitted.precision_).float()
    bounds = torch.tensor([[-_ANY, _ANY]] * len(WAYS)) if bounds is None else bounds
    direction, offset = torch.zeros(len(mean)), torch.zeros(1)
    if others is not None:
        direction, offset = _direction(training, others, fitted)
    typicality = Typicality(block, mean, precision, torch.zeros(1), bounds, direction, offset)
    distances = typicality.measure(unseen)
    places = torch.linspace(0, 1, min(_MOST_DISTANCES, len(distances)))
    return replace(typicality, distances=torch.quantile(distances, places))


def _direction(training: torch.Tensor, others: torch.Tensor, fitted: LedoitWolf) -> tuple[torch.Tensor, torch.Tensor]:
    """Along what, (D,), and from where on, (1,), the others are told from training features, in logits.

    Logistic regression of features that are whitened by the training features' covariance, so that all directions are
    penalised alike.
    """
    whiten = np.linalg.cholesky(fitted.precision_)
    features = (torch.cat([training, others]).double().numpy() - fitted.location_) @ whiten
    is_other = np.arange(len(features)) >= len(training)
    found = LogisticRegression(C=_PENALTY, class_weight="balanced", max_iter=1000).fit(features, is_other)
    direction = whiten @ found.coef_[0]
    offset = direction @ fitted.location_ - found.intercept_[0]
    return torch.from_numpy(direction).float(), torch.tensor([offset]).float()
