"""Windows and their answers: what a window shows lies where its answer says."""

import itertools
import math

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy.ndimage import label

from clip_koa.localisation import windows
from clip_koa.localisation.windows import UNIT_DEGREES, Window, draw_windows, mirror
from dataset_script.films import Pair, draw_pairs
from modeling_clip_koa.localisation_clip_koa import Pyramid


@pytest.fixture(scope="module")
def marked_pair():
    """Knees that are black but for three bright spots: the middle, and right and below of it."""
    crop = Image.new("L", (224, 224), 30)
    draw = ImageDraw.Draw(crop)
    for x, y, shade in ((112, 112, 255), (172, 112, 180)):
        draw.ellipse([x - 9, y - 9, x + 8, y + 8], fill=shade)
    return Pair(0, "1", crop, crop, 0, 0)


def spots(picture):
    """The middles (x, y) of the two spots, the brighter first, in window sides from the middle; None if one is cut."""
    values = np.asarray(picture, float)
    parts, count = label(values >= 100)
    whole = []
    for number in range(1, count + 1):
        rows, columns = np.nonzero(parts == number)
        if len(rows) > 20 and min(rows.min(), columns.min()) > 1 and max(rows.max(), columns.max()) < len(values) - 2:
            middle = (columns.mean() + 0.5) / len(values) - 0.5, (rows.mean() + 0.5) / len(values) - 0.5
            whole.append((values[parts == number].max(), middle))
    return [middle for _, middle in sorted(whole, reverse=True)] if len(whole) == 2 else None


@pytest.mark.parametrize("kind", ["_whole_crop", "_in_crop", "_on_canvas"])
def test_the_answer_is_where_the_knee_is(marked_pair, kind, monkeypatch):
    monkeypatch.setattr(windows, "_LOOKS", ("dark",))
    checked, leaning = 0, 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        film = windows._film(marked_pair, rng)
        window = getattr(windows, kind)(marked_pair, film, rng, 224)
        window = mirror(window) if seed % 2 else window
        across, down, scale, turn = window.target
        if (found := spots(window.picture)) is None:
            continue
        middle, aside = found
        assert (across, down) == pytest.approx(middle, abs=0.02)
        sign = -1 if seed % 2 else 1
        lies = sign * (aside[0] - middle[0]), aside[1] - middle[1]
        assert math.log(math.hypot(*lies) * 224 / 60) == pytest.approx(scale, abs=0.06)
        angle = math.degrees(math.atan2(sign * lies[1], lies[0]))
        assert turn * UNIT_DEGREES == pytest.approx(angle, abs=3)
        leaning += abs(turn) > 0.1
        checked += 1
    assert checked >= 8 and (leaning or kind == "_whole_crop")


def test_a_window_of_a_film_holds_the_knee_where_it_says():
    """What is cut out of it by its answer is like the crop, and more so than what lies beside."""
    pair = next(draw_pairs(1, seed=1))
    crops = [np.asarray(crop.resize((64, 64)), float).ravel() for crop in (pair.right, pair.left)]
    found = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        window = windows.in_film(pair, windows._film(pair, rng), rng, 224)
        across, down, scale, turn = window.target
        side, pyramid = 224 * math.exp(scale), Pyramid(window.picture)

        def likeness(aside=0.0, below=0.0, side=side, pyramid=pyramid, place=(across, down), turn=turn):
            centre = 224 * place[0] + aside * side, 112 + 224 * place[1] + below * side
            cut = np.asarray(pyramid.window(centre, side, 64, turn * UNIT_DEGREES), float).ravel()
            return max(np.corrcoef(cut, crop)[0, 1] for crop in crops)

        found.append([likeness(*way) for way in ((0, 0), (0.25, 0), (-0.25, 0), (0, 0.25), (0, -0.25))])
    there, *beside = np.mean(found, axis=0)
    assert there > max(beside) + 0.1


def test_a_film_without_a_knee_in_the_window_has_no_answer():
    pair = next(draw_pairs(1, seed=1))
    for seed in range(20):
        rng = np.random.default_rng(seed)
        film = windows._film(pair, rng)
        for kind in (windows.beside, windows._wrong_way, windows._drawn):
            window = kind(pair, film, rng, 64)
            assert window.target is None and window.picture.size == (64, 64) and window.picture.mode == "L"


def test_the_same_seed_gives_the_same_windows():
    def draw(seed):
        return list(draw_windows(draw_pairs(2, seed=0), 48, 6, seed))

    first, again, other = draw(3), draw(3), draw(4)
    assert [window.picture.tobytes() for window in first] == [window.picture.tobytes() for window in again]
    assert [window.target for window in first] == [window.target for window in again]
    assert [window.picture.tobytes() for window in first] != [window.picture.tobytes() for window in other]
    assert len(first) == 12 and {window.target is None for window in first} == {True, False}


def test_the_held_out_look_is_never_drawn():
    assert "scanned" not in windows._LOOKS and len(windows._LOOKS) >= 3


def test_a_mirrored_window_leans_to_the_other_side():
    window = Window(Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)), (0.1, 0.2, 0.3, 0.4))
    assert mirror(window).target == (-0.1, 0.2, 0.3, -0.4)
    assert mirror(mirror(window)).picture.tobytes() == window.picture.tobytes()
    assert mirror(Window(window.picture, None)).target is None


def test_kinds_and_their_shares_fit():
    assert len(windows._KINDS) == len(windows._SHARES) and sum(windows._SHARES) == pytest.approx(1)
    assert len(list(itertools.islice(draw_windows(draw_pairs(1, seed=0), 32, 30, 0), 30))) == 30
