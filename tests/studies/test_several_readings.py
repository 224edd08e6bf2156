"""The study of several readings: a stop loses nothing, and a mean is compared with the X-ray as it is."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modeling_clip_koa.preprocessing_clip_koa import READINGS
from studies.members.networks import StudyError
from studies.readings import CHANGES, MEANS, describe, draw_order, grade_mean, read_all

COUNT = 90
PEOPLE = [f"p{number // 2}" for number in range(COUNT)]


class Xrays:
    """X-rays whose pixels tell their number; the one at which it stops, if any, can't be read."""

    def __init__(self, stop=None):
        self.split, self.stop, self.asked = {"label": [number % 5 for number in range(COUNT)]}, stop, []

    def __getitem__(self, index):
        if len(self.asked) == self.stop:
            raise KeyboardInterrupt
        self.asked.append(index)
        return {"pixel_values": torch.full((3, 8, 8), float(index))}


class Model:
    """Gives logits that tell the X-ray and nothing of its reading."""

    config = SimpleNamespace(num_labels=5)

    def grade_pixels(self, pixel_values):
        numbers = pixel_values.mean((1, 2, 3)).round().long()
        noise = torch.stack([torch.randn(5, generator=torch.Generator().manual_seed(int(n))) for n in numbers])
        logits = torch.nn.functional.one_hot(numbers % 5, 5) + noise
        return logits, logits.flip(0), None


def test_a_stopped_run_goes_on_to_the_same_file(tmp_path):
    order = draw_order(PEOPLE)
    whole = read_all(Model(), Xrays(), order, PEOPLE, tmp_path / "whole.npz", "this")
    with pytest.raises(KeyboardInterrupt):
        read_all(Model(), Xrays(stop=50), order, PEOPLE, tmp_path / "stopped.npz", "this")
    rest = Xrays()
    stopped = read_all(Model(), rest, order, PEOPLE, tmp_path / "stopped.npz", "this")
    assert len(rest.asked) == COUNT - 40  # what was kept is not read again
    assert all(np.array_equal(whole[name], stopped[name]) for name in whole)
    assert whole["logits"].shape == (COUNT, len(CHANGES), 2, 5)
    with pytest.raises(StudyError, match="another model, precision or corpus"):
        read_all(Model(), Xrays(), order, PEOPLE, tmp_path / "whole.npz", "other")


def test_the_order_is_by_person_and_covers_all():
    order = draw_order(PEOPLE)
    assert sorted(order.tolist()) == list(range(COUNT))
    people = [PEOPLE[place] for place in order]
    assert people != PEOPLE and people[::2] == people[1::2]


def test_the_table_tells_a_gain_from_none():
    labels, draws = np.arange(COUNT) % 5, np.random.default_rng(0)
    noise = draws.normal(size=(COUNT, len(CHANGES), 2, 5))
    kept = {"logits": 2 * np.eye(5)[labels][:, None, None] + 3 * noise, "labels": labels, "people": np.array(PEOPLE)}
    lines = describe(kept).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["as it is", *MEANS]
    assert "to -0" in lines[-1].split("|")[2]  # the mean of five noisy readings has less log loss for certain
    kept["logits"] = np.repeat(kept["logits"][:, :1], len(CHANGES), 1)
    assert "(+0.000, +0.000 to +0.000)" in describe(kept).splitlines()[-1]


def test_temperatures_come_from_other_people():
    labels, logits = np.arange(COUNT) % 5, np.random.default_rng(0).normal(size=(COUNT, 1, 2, 5))
    before = grade_mean(logits, labels, PEOPLE)["both"]
    other = labels.copy()
    other[:2] = (other[:2] + 1) % 5
    after = grade_mean(logits, other, PEOPLE)["both"]
    assert np.array_equal(before[:2], after[:2]) and not np.array_equal(before, after)


def test_the_turns_are_those_of_grade():
    assert tuple(CHANGES[place] for place in MEANS["turns of 4 degrees"]) == tuple((d, 1.0) for d in READINGS[3])
