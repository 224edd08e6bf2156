"""Fits what finds the knees of a film to training X-rays: what `clip-koa fit-framing` keeps beside the weights.

Windows are cut out of the crops of the train split and out of films composed of them, so no film is needed. The lower
half of the vision tower is run on each once; a small head is then trained on what it gives. The same seed on the same
machine gives the same locator.
"""

import itertools
from collections.abc import Iterable
from pathlib import Path

import torch
from sklearn.covariance import LedoitWolf
from torch import nn
from tqdm.auto import tqdm

from clip_koa.localisation.film_windows import draw_film_windows
from clip_koa.localisation.windows import Window, draw_windows
from dataset_script.detection import read_detection_films
from dataset_script.films import read_pairs
from modeling_clip_koa.localisation_clip_koa import KneeLocator, LocalisationError

_BATCH_SIZE, _LEARNING_RATE, _WEIGHT_DECAY, _DROPOUT = 128, 2e-3, 0.02, 0.1
_HELD_OUT = 0.05  # share of the people whose windows only measure
_PRESENCE_WEIGHT = 0.1
# A window is framed where its answer is under this. Of such windows of other people this share is usual; what is
# stranger than they by more than the factor is no knee. No window of another image that was tried is under 2.5.
_NEARLY_FRAMED, _USUAL, _LIMIT, _FOLDS = (0.07, 0.07, 0.13, 0.4), 0.98, 1.75, 5
_LINEAR_FROM = 0.05  # errors under this count squared, those over it linearly


def new_locator(model, image_processor) -> KneeLocator:
    """A locator that knows nothing yet, for half the side and half the blocks of a model's vision tower."""
    vision = model.config.vision_config
    patches = max(2, round(vision.image_size / vision.patch_size / 2))
    blocks = max(1, vision.num_hidden_layers // 2)
    locator = KneeLocator(vision.hidden_size, patches**2, blocks, patches * vision.patch_size)
    locator.image_mean.copy_(torch.tensor(image_processor.image_mean))
    locator.image_std.copy_(torch.tensor(image_processor.image_std))
    return locator


def collect(model, locator: KneeLocator, windows: Iterable[Window], count: int):
    """What the tower says of windows, `count` at most.

    Returns:
        tokens (N, P, D) fp16, and targets (N, 4), not a number where there is no knee.
    """
    tokens = torch.empty(count, locator.join.in_features // locator.reduce.out_features, len(locator.centre)).half()
    targets = torch.full((count, 4), torch.nan)
    windows, done = itertools.islice(windows, count), 0
    with tqdm(total=count, desc="windows", unit="window") as bar:
        while batch := list(itertools.islice(windows, 32)):
            tokens[done : done + len(batch)] = locator.tokens(model, [window.picture for window in batch])
            for place, window in enumerate(batch, done):
                if window.target:
                    targets[place] = torch.tensor(window.target)
            done += len(batch)
            bar.update(len(batch))
    return tokens[:done], targets[:done]


def train(locator: KneeLocator, tokens: torch.Tensor, targets: torch.Tensor, epochs: int, seed: int) -> None:
    """Trains the locator's three layers; `tokens` (N, P, D), `targets` (N, 4) as `collect` gives them."""
    random = torch.Generator().manual_seed(seed)
    sample = tokens[:: max(1, len(tokens) // 1500)].float()
    locator.centre.copy_(sample.mean((0, 1)))
    locator.spread.copy_(sample.std((0, 1)).clamp(min=1e-6))
    for layer in (locator.reduce, locator.join, locator.give):
        nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=random)
        nn.init.zeros_(layer.bias)
    optimizer = torch.optim.AdamW(locator.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    size = min(_BATCH_SIZE, len(tokens))
    steps = epochs * (len(tokens) // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps, pct_start=0.1)
    bar = tqdm(total=steps, desc="fitting", unit="step")
    for _ in range(epochs):
        order = torch.randperm(len(tokens), generator=random)
        for start in range(0, len(tokens) - size + 1, size):
            chosen = order[start : start + size].sort().values
            batch = tokens[chosen].float()
            kept = torch.rand(*batch.shape[:2], 1, generator=random) >= _DROPOUT  # whole patches are left out
            batch = torch.where(kept, batch, locator.centre)
            loss = _loss(locator(batch), targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()
    bar.close()
    locator.eval()


def _loss(answers: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Of (N, 5) against (N, 4): the places where there is a knee, and whether there is one."""
    present = ~targets[:, 0].isnan()
    loss = nn.functional.binary_cross_entropy_with_logits(answers[:, 4], present.float()) * _PRESENCE_WEIGHT
    if present.any():
        errors = nn.functional.smooth_l1_loss(
            answers[present, :4], targets[present], beta=_LINEAR_FROM, reduction="none"
        ).mean(0)
        loss = loss + (errors * torch.tensor([1.0, 1.0, 1.0, 0.5])).mean()
    return loss


def fit_typicality(locator: KneeLocator, tokens: torch.Tensor, targets: torch.Tensor) -> None:
    """Learns what windows look like that are framed as training crops are, degraded as X-rays may be.

    The covariance is shrunk after Ledoit & Wolf (2004). The limit comes of windows that each were left out of the fit.

    Args:
        tokens, targets: as `collect` gives them, in the order of the people.

    Raises:
        LocalisationError: fewer than two windows for each of the folds are framed.
    """
    framed = tokens[_is_framed(targets)].float()
    if len(framed) < 2 * _FOLDS:
        raise LocalisationError("Too few windows are framed: give more people, or --per_person.")
    left_out = []
    folds = torch.arange(len(framed)) * _FOLDS // len(framed)  # of neighbours, so that a person's are together
    for fold in range(_FOLDS):
        _describe_framed(locator, framed[folds != fold])
        left_out.append(locator.strangeness(framed[folds == fold]))
    _describe_framed(locator, framed)
    locator.typical_limit.copy_(_LIMIT * torch.cat(left_out).quantile(_USUAL))


def _describe_framed(locator: KneeLocator, framed: torch.Tensor) -> None:
    """Centre, axes and precision of framed windows, (N, P, D); the limit becomes 1."""
    means = framed.double().mean(1)
    centre = means.mean(0)
    axes = torch.linalg.svd(means - centre, full_matrices=False).Vh[: locator.typical_axes.shape[1]]
    locator.typical_mean.copy_(centre)
    locator.typical_axes.zero_()[:, : len(axes)] = axes.T
    traits = LedoitWolf().fit(locator.traits(framed).numpy())
    locator.typical_centre.copy_(torch.from_numpy(traits.location_))
    locator.typical_precision.copy_(torch.from_numpy(traits.precision_))
    locator.typical_limit.fill_(1.0)


def _is_framed(targets: torch.Tensor) -> torch.Tensor:
    """Which of the windows (N, 4) lie nearly as training crops do, (N,)."""
    return (targets.abs() < torch.tensor(_NEARLY_FRAMED)).all(1)


@torch.inference_mode()
def measure(locator: KneeLocator, tokens: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """Median errors (window sides, logarithm of the scale), and shares of knees missed and of others taken for one."""
    answers = torch.cat([locator(part) for part in tokens.split(256)])
    present = ~targets[:, 0].isnan()
    errors = (answers[present, :4] - targets[present]).abs()
    names = ("across", "down", "scale", "angle")
    found = {name: float(value) for name, value in zip(names, errors.median(0).values, strict=True)}
    sure = answers[:, 4] > 0
    return found | {"missed": float((~sure[present]).float().mean()), "taken": float(sure[~present].float().mean())}


def fit_locator(
    model,
    image_processor,
    data: Path,
    *,
    people: int,
    per_person: int,
    epochs: int,
    seed: int,
    films: Path | None = None,
):
    """A locator fitted to the train split of a corpus, and what it reaches on people it was not fitted to.

    Args:
        people: of whom windows are cut, at most; and of the films.
        per_person: windows of each person, and of each film.
        films: DetKneeData, whose train split is fitted to as well; see `read_detection_films`.

    Raises:
        LocalisationError: no two people of whom both knees are there, or too few windows.
        CorpusError: films that cannot be read.
    """
    pairs = list(read_pairs(data, "train", people))
    if len(pairs) < 2:
        raise LocalisationError(f"{data} has no two people in its train split of whom both knees are there.")
    locator = new_locator(model, image_processor)
    known = (
        sorted(itertools.islice(read_detection_films(films, "train"), people), key=lambda film: film.person)
        if films
        else []
    )
    sources = [(pairs, draw_windows), (known, draw_film_windows)]
    parts = []
    for held_out in (True, False):
        windows, count = [], 0
        for items, draw in sources:
            bound = max(1, round(_HELD_OUT * len(items)))
            chosen = items[:bound] if held_out else items[bound:]
            windows.append(draw(iter(chosen), locator.window, per_person, seed))
            count += len(chosen) * per_person
        parts.append(collect(model, locator, itertools.chain(*windows), count))
    unseen, fitted = parts
    train(locator, *fitted, epochs, seed)
    fit_typicality(locator, *fitted)
    return locator, measure(locator, *unseen)


def describe(found: dict[str, float]) -> str:
    """What `fit_locator` reached, in a sentence."""
    return (
        f"On people it was not fitted to, in the median: {found['across']:.3f} across, {found['down']:.3f} down (in "
        f"sides of the window), {found['scale']:.3f} of the scale's logarithm; {found['missed']:.1%} of knees missed, "
        f"{found['taken']:.1%} of other windows taken for a knee."
    )
