"""The figures of framing: what they say of a search that finds all, or nothing; and the command."""

import json

import numpy as np
import pytest
from deepdish_files import deepdish_file
from PIL import Image

from clip_koa.localisation.fit import new_locator
from clip_koa.training.checkpoints import save_model_folder
from dataset_script.films import compose_film, draw_pairs
from dataset_script.synthetic import main as draw
from modeling_clip_koa.localisation_clip_koa import Knee, locator_file
from studies import framing


@pytest.fixture
def graded(make_model, image_processor):
    model = make_model().eval()
    model.image_processor = image_processor
    return framing.Graded(model, None)


@pytest.fixture(scope="module")
def people():
    return list(draw_pairs(3, seed=0))


def test_a_search_that_knows_the_boxes_has_the_best_figures(graded, people, monkeypatch):
    def finds(shift: int, more: tuple[Knee, ...] = ()):
        def find(model, locator, pictures):
            boxes = compose_film(pair.right, pair.left, (0, pair.number), "dark", 800).boxes
            return [[*(Knee(tuple(place + shift for place in box)) for box in boxes), *more]]

        monkeypatch.setattr(framing, "find_knees", find)

    def measure():
        nonlocal pair
        found = []
        for pair in people:
            official = graded.grades([pair.right, pair.left])
            found.append(framing.measure_films(graded, [pair], "dark", 800, official))
        return found

    pair = None
    finds(0)
    for found in measure():
        assert found["both_found"] == found["nothing_else"] == 1 and found["overlap"]["0.5"] == 1
    finds(60)
    assert [found["both_found"] for found in measure()] == [0, 0, 0]
    finds(0, more=(Knee((0, 0, 30, 30)),))
    assert [found["nothing_else"] for found in measure()] == [0, 0, 0]


def test_pictures_are_counted_that_both_views_frame_otherwise(graded, monkeypatch):
    graded.locator, pictures = new_locator(graded.model, graded.model.image_processor), [Image.new("L", (32, 32))] * 20

    def find(model, locator, pictures):
        clear = locator.glance(None, pictures)[:, 4] >= 0.5 if isinstance(locator, framing.BothViews) else [True] * 16
        return [[Knee((0, 0, 32, 32))] if one else [] for one, _ in zip(clear, pictures, strict=False)]

    monkeypatch.setattr(framing, "find_knees", find)
    assert framing.measure_glance(graded, pictures) == {"pictures": 20, "others by both views": 20}
    monkeypatch.setattr(framing, "find_knees", lambda model, locator, pictures: [[] for _ in pictures])
    assert framing.measure_glance(graded, pictures)["others by both views"] == 0


def test_overlap_of_boxes():
    assert framing.overlap((0, 0, 10, 10), (0, 0, 10, 10)) == 1
    assert framing.overlap((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert framing.overlap((0, 0, 10, 10), (20, 0, 30, 10)) == 0


def test_changes_of_crops_do_what_they_say():
    crop = Image.fromarray(np.random.default_rng(0).integers(40, 200, (224, 224)).astype(np.uint8))
    rng = np.random.default_rng(0)
    canvas = framing.on_canvas(crop, rng)
    assert canvas.size == (280, 280) and (np.asarray(canvas) > 0).sum() == 224 * 224
    boxed = framing.letterboxed(crop, rng)
    assert sorted(boxed.size)[0] == 224 and max(boxed.size) >= 224 + 2 * 22
    assert framing.moved(crop, rng).size[0] in range(170, 290)


def test_one_command_gives_the_figures(make_model, image_processor, tokenizer, tmp_path, capsys):
    assert draw(["--output", str(tmp_path / "drawn"), "--people", "2", "--split", "validation"]) == 0
    model = make_model().eval()
    save_model_folder(tmp_path / "model", model, image_processor, tokenizer)
    command = ["--model", str(tmp_path / "model"), "--data_dir", str(tmp_path / "drawn"), "--width", "400"]
    assert framing.main(command) == 2
    assert "cannot find knees yet" in capsys.readouterr().err
    locator = tmp_path / "locator"
    locator.write_bytes(locator_file(new_locator(model, image_processor)))
    sections = ["--sections", "films", "crops", "moved", "frames", "turned", "glance"]
    assert framing.main([*command, "--locator", str(locator), *sections]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert list(figures["films"])[-1] == "scanned" and figures["films"]["dark"]["films"] == 2
    assert figures["official crops"]["pictures"] == 4 and "turned by 15 degrees" in figures
    assert figures["glance"]["pictures"] == 4 * 7


def test_films_of_the_detection_task(make_model, image_processor, tokenizer, people, tmp_path, capsys, monkeypatch):
    pytest.importorskip("h5py")
    folder = tmp_path / "DetKneeData" / "H5" / "testH5"
    folder.mkdir(parents=True)
    boxes = {}
    for pair in people:
        film = compose_film(pair.right, pair.left, pair.number, "dark", 320)
        boxes[film.image.tobytes()] = film.boxes
        values, number = np.asarray(film.image), 9000001 + pair.number
        data = {"images": values, "gt_boxes": np.array(film.boxes), "origin_im": str(number)}
        (folder / f"{number}.h5").write_bytes(deepdish_file(data))
    model = make_model().eval()
    save_model_folder(tmp_path / "model", model, image_processor, tokenizer)
    (tmp_path / "locator").write_bytes(locator_file(new_locator(model, image_processor)))
    command = ["--model", str(tmp_path / "model"), "--locator", str(tmp_path / "locator"), "--split", "test"]

    def finds(grow: int):
        def find(model, locator, pictures):
            known = boxes[pictures[0].tobytes()]
            return [[Knee((box[0] - grow, box[1] - grow, box[2] + grow, box[3] + grow)) for box in known]]

        monkeypatch.setattr(framing, "find_knees", find)

    for grow, both in ((0, 1.0), (10, 0.0)):
        finds(grow)
        assert framing.main([*command, "--sections", "detection", "--films", str(tmp_path / "DetKneeData")]) == 0
        told = capsys.readouterr().out
        found = json.loads(told)["detection"]
        assert (found["films"], found["both_found"], found["nothing_else"], found["right_knee_first"]) == (
            3,
            both,
            1,
            1,
        )
        side = np.median([box[2] - box[0] for two in boxes.values() for box in two])
        assert found["side_over_theirs"] == pytest.approx(1 + 2 * grow / side, abs=0.02) and "9000001" not in told
    assert framing.main([*command, "--sections", "detection"]) == 2
    assert "go together: give both" in capsys.readouterr().err
    assert framing.main([*command, "--sections", "detection", "--films", str(tmp_path / "model")]) == 2
    assert "holds no testH5/*.h5" in capsys.readouterr().err
