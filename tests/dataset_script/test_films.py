"""Composed films: their geometry is that of real ones, and what lies in a box is the crop."""

import json

import numpy as np
import pytest

from dataset_script.films import HELD_OUT_LOOK, LOOKS, compose_film, draw_pairs, main, read_pairs
from dataset_script.synthetic import main as draw


@pytest.fixture(scope="module")
def pair():
    return next(draw_pairs(1, seed=0))


def test_the_geometry_is_that_of_real_films(pair):
    films = [compose_film(pair.right, pair.left, seed) for seed in range(60)]
    boxes = np.array([film.boxes for film in films], float)  # (films, 2, 4)
    width, height = films[0].image.size
    assert width / height == pytest.approx(1.25)
    sides = boxes[:, :, 2] - boxes[:, :, 0]
    assert (sides == boxes[:, :, 3] - boxes[:, :, 1]).all() and (sides[:, 0] == sides[:, 1]).all()
    shares = sides[:, 0] / width
    assert shares.min() >= 0.266 and shares.max() <= 0.325 and np.median(shares) == pytest.approx(0.29, abs=0.01)
    centres = (boxes[:, :, 0] + boxes[:, :, 2]) / 2 / width
    assert np.median(centres[:, 0]) == pytest.approx(0.285, abs=0.02)
    assert np.median(centres[:, 1]) == pytest.approx(0.711, abs=0.02)
    heights = (boxes[:, :, 1] + boxes[:, :, 3]) / 2 / height
    assert heights.min() >= 0.39 and heights.max() <= 0.71 and np.abs(heights[:, 0] - heights[:, 1]).max() <= 0.07
    assert (boxes[:, 1, 0] - boxes[:, 0, 2]).min() >= 0.055 * width - 1


@pytest.mark.parametrize("look", LOOKS)
def test_each_box_holds_its_own_knee(pair, look):
    film = compose_film(pair.right, pair.left, 3, look)
    for box, own, other in ((film.boxes[0], pair.right, pair.left), (film.boxes[1], pair.left, pair.right)):
        cut = np.asarray(film.image.resize((224, 224), box=box), float).ravel()

        def like(crop, cut=cut):
            return np.corrcoef(cut, np.asarray(crop, float).ravel())[0, 1]

        assert like(own) > 0.9 and like(own) > like(other)


def test_the_same_seed_gives_the_same_film_and_another_does_not(pair):
    first, again, other = (compose_film(pair.right, pair.left, seed) for seed in (1, 1, 2))
    assert first.image.tobytes() == again.image.tobytes() and first.boxes == again.boxes
    assert other.boxes != first.boxes


def test_looks_differ_and_one_is_held_out(pair):
    assert HELD_OUT_LOOK in LOOKS
    pictures = {compose_film(pair.right, pair.left, 1, look).image.tobytes() for look in LOOKS}
    assert len(pictures) == len(LOOKS)


def test_a_wrong_look_or_size_is_named(pair):
    with pytest.raises(ValueError, match="look='sepia': use one of dark"):
        compose_film(pair.right, pair.left, 0, "sepia")
    with pytest.raises(ValueError, match="width=100"):
        compose_film(pair.right, pair.left, 0, width=100)
    with pytest.raises(ValueError, match="square crops"):
        compose_film(pair.right.crop((0, 0, 100, 90)), pair.left, 0)


def test_a_folder_of_films_from_a_corpus(tmp_path):
    assert draw(["--output", str(tmp_path / "drawn"), "--people", "3", "--split", "validation"]) == 0
    command = ["--data_dir", str(tmp_path / "drawn"), "--output", str(tmp_path / "films"), "--limit", "2"]
    assert main(command) == 0
    entries = json.loads((tmp_path / "films/boxes.json").read_text())
    assert [entry["film"] for entry in entries] == ["0000.png", "0001.png"]
    assert all((tmp_path / "films" / entry["film"]).is_file() for entry in entries)
    pairs = list(read_pairs(tmp_path / "drawn", "validation"))
    assert [entry["grades"] for entry in entries] == [[pair.right_grade, pair.left_grade] for pair in pairs[:2]]
    assert main(command) == 2  # never over a folder that is there
    assert main(["--data_dir", str(tmp_path / "nothing"), "--output", str(tmp_path / "more")]) == 2


def test_trimmed_crops_end_elsewhere_than_their_boxes(pair):
    """Else a fit would find the boxes by the seams. Each leg ends in its box at another place."""
    whole = compose_film(pair.right, pair.left, 3, "dark")
    trimmed = compose_film(pair.right, pair.left, 3, "dark", trim=0.2)
    assert trimmed.boxes == whole.boxes
    for (left, top, right, bottom), knee in zip(trimmed.boxes, (pair.right, pair.left), strict=True):
        side = right - left
        cut = np.asarray(trimmed.image.crop((left, top, right, bottom)), float)
        crop = np.asarray(knee.resize((side, side)), float)
        edge, middle = side // 5, slice(side // 4, -side // 4)
        rim = np.r_[np.abs(cut - crop)[:edge].ravel(), np.abs(cut - crop)[-edge:].ravel()].mean()
        assert np.abs(cut - crop)[middle, middle].mean() < rim
    with pytest.raises(ValueError, match="trim=0.5: use 0 to 0.3"):
        compose_film(pair.right, pair.left, 0, trim=0.5)
