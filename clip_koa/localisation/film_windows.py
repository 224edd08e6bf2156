"""Windows with known answers, cut out of real films whose knees' boxes are known."""

import math
from collections.abc import Iterable, Iterator

import numpy as np

from clip_koa.localisation.windows import Window, beside, degrade, in_film, mirror
from dataset_script.detection import DetectionFilm
from modeling_clip_koa.localisation_clip_koa import Pyramid

_FILMS = 1  # of films other numbers are drawn than of people
_KNEES = 0.6  # share of windows on knees


def draw_film_windows(films: Iterable[DetectionFilm], size: int, per_film: int, seed: int) -> Iterator[Window]:
    """Windows of films, on their knees and beside them; the same arguments give the same ones."""
    for number, film in enumerate(films):
        rng = np.random.default_rng((seed, _FILMS, number))
        seen = Pyramid(film.image), np.array([_squared(box) for box in film.boxes])
        for _ in range(per_film):
            kind = in_film if rng.random() < _KNEES else beside
            window = kind(None, seen, rng, size)
            if rng.random() < 0.5:
                window = mirror(window)
            yield Window(degrade(window.picture, rng), window.target)


def _squared(box) -> tuple[float, float, float, float]:
    """The square of a box's middle and area: as crops are."""
    across, down = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    half = math.sqrt((box[2] - box[0]) * (box[3] - box[1])) / 2
    return across - half, down - half, across + half, down + half
