"""The audit: each fault is found and named, what is sound passes, and the exit status says which."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from dataset_script.audit import audit_corpus, main
from dataset_script.synthetic import draw_knee, write_corpus


@pytest.fixture
def knees(tmp_path):
    """A sound corpus: train, val and test of generated people, no grade missing."""
    for split, people in (("train", 10), ("validation", 5), ("test", 5)):
        write_corpus(tmp_path / split, people=people, seed=1, image_size=64, overlap=0, split=split)
        (tmp_path / "knees").mkdir(exist_ok=True)
        shutil.move(tmp_path / split / split, tmp_path / "knees" / split)
    return tmp_path / "knees"


def _first(folder):
    return min(folder.rglob("*.png"))


def test_a_sound_corpus_is_fit(knees, tmp_path, capsys):
    assert main([str(knees), "--json", str(tmp_path / "a.json"), "--sheet", str(tmp_path / "a.png")]) == 0
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["fit"] and report["problems"] == [] and report["notes"] == []
    assert report["splits"]["train"] == {"xrays": 20, "people": 10, "grades": report["splits"]["train"]["grades"]}
    assert sum(report["splits"]["train"]["grades"]) == 20
    assert report["sizes"] == {"64x64": 40} and report["laterality"] == {"L": 20, "R": 20}
    differences = report["left_right_differences"]["train"]
    assert sum(differences.values()) == 10 and differences["2"] == 0  # drawn within one grade
    output = capsys.readouterr().out
    assert "fit to train on" in output and "NOT" not in output and "validation" in output
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.width == 12 * 112 and np.asarray(sheet).std() > 20
    assert not list(tmp_path.glob(".*writing*"))


def _crossing(knees):
    shutil.copy(draw(knees), knees / "validation" / "0" / f"{_first(knees / 'train').stem[:7]}L.png")
    return "1 people are in more than one split"


def draw(knees):
    path = knees.parent / "other.png"
    draw_knee(0, "L", 99, 64).save(path)
    return path


def _unreadable(knees):
    path = _first(knees / "train")
    path.write_bytes(path.read_bytes()[:200])
    return "1 X-rays cannot be read"


def _blank(knees):
    Image.new("L", (64, 64), 100).save(_first(knees / "train"))
    return "1 X-rays are blank"


def _nearly_blank(knees):
    noise = np.random.default_rng(0).normal(100, 2, (64, 64)).astype(np.uint8)
    Image.fromarray(noise).save(_first(knees / "train"))
    return "1 X-rays are blank"


def _in_two_splits(knees):
    shutil.copy(_first(knees / "train"), knees / "validation" / "0" / "x.png")
    return "1 X-rays are in more than one split"


def _two_grades(knees):
    with Image.open(_first(knees / "train" / "0")) as image:
        image.save(knees / "train" / "3" / "x.bmp")  # the same pixels in another format
    return "1 X-rays are there twice with different grades"


def _no_train(knees):
    shutil.rmtree(knees / "train")
    return "there is no train split"


@pytest.mark.parametrize(
    "spoil", [_crossing, _unreadable, _blank, _nearly_blank, _in_two_splits, _two_grades, _no_train]
)
def test_what_makes_a_corpus_unfit(spoil, knees, tmp_path, capsys):
    problem = spoil(knees)
    assert main([str(knees), "--json", str(tmp_path / "a.json"), "--sheet", str(tmp_path / "a.png")]) == 1
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["problems"] == [problem] and not report["fit"]
    output = capsys.readouterr().out
    assert f"PROBLEM: {problem}" in output and "NOT fit to train on" in output


def test_inverted_xrays_are_noted(knees):
    path = _first(knees / "train")
    with Image.open(path) as image:
        ImageOps.invert(image).save(path)
    report = audit_corpus(knees)
    assert report["fit"] and report["inverted"] == [path.relative_to(knees).as_posix()]
    assert "1 X-rays show bone dark on white" in report["notes"][0]


def _recompressed(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return Image.open(buffer)


@pytest.mark.parametrize(
    "change, mirrored",
    [
        (_recompressed, False),
        (lambda image: image.resize((150, 150), Image.Resampling.BICUBIC), False),
        (lambda image: ImageEnhance.Brightness(image).enhance(1.05), False),
        (lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), True),
    ],
)
def test_near_duplicates_are_found(change, mirrored, knees):
    original = draw_knee(2, "L", 77, 224)
    original.save(knees / "train" / "2" / "a.png")
    change(original).save(knees / "validation" / "2" / "b.png")
    [pair] = audit_corpus(knees)["near_duplicates"]
    assert sorted(pair["files"]) == ["train/2/a.png", "validation/2/b.png"] and pair["mirrored"] is mirrored


def test_other_knees_are_no_near_duplicates(knees):
    report = audit_corpus(knees)
    assert report["near_duplicates"] == [] and report["exact_duplicates"] == []


def test_auto_test_is_no_leak(knees):
    (knees / "auto_test" / "0").mkdir(parents=True)
    path = _first(knees / "test" / "0")
    shutil.copy(path, knees / "auto_test" / "0" / f"{path.stem[:7]}_1.png")
    report = audit_corpus(knees)
    assert report["fit"] and len(report["exact_duplicates"]) == 1


def test_a_table_with_unknown_people_is_noted(tmp_path):
    rows = [("file", "label")]
    for number in range(4):
        draw_knee(number, "L", number, 64).save(tmp_path / f"{number}.png")
        rows.append((f"{number}.png", number))
    with open(tmp_path / "knees.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    notes = "\n".join(audit_corpus(tmp_path / "knees.csv")["notes"])
    assert "4 X-rays are of unknown people" in notes and "no validation split" in notes
    assert "train has no X-ray of KL4" in notes


def test_nothing_to_look_at(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("KNEE_XRAY_DIR", raising=False)
    assert main([str(tmp_path / "nowhere")]) == 2
    assert main([]) == 2
    assert "Traceback" not in (errors := capsys.readouterr().err) and "10.17632/56rmx5bjcr.1" in errors


@pytest.mark.real
def test_the_real_corpus_is_fit(knee_xray_dir):
    """The figures that the dataset card gives."""
    report = audit_corpus(knee_xray_dir)
    assert report["fit"] and len(report["inverted"]) == 84
    for name in ("unreadable", "blank", "exact_duplicates", "near_duplicates", "release_differences"):
        assert report[name] == []
    assert report["left_right_differences"]["train"] == {"0": 1553, "1": 805, "2": 367, "3": 134, "4": 30}
    assert report["left_right_differences"]["validation"] == {"0": 219, "1": 109, "2": 55, "3": 24, "4": 6}
