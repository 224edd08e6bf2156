"""The exported corpus: loaded and streamed without our code, the same pixels, and nobody's name in it."""

import csv
import os
import shutil
import stat
from pathlib import Path

import datasets
import pytest

from dataset_script.export import main, pseudonym
from dataset_script.knee_xray import load_knee_xray
from dataset_script.layouts import list_files
from dataset_script.radiograph import read_radiograph
from dataset_script.synthetic import draw_knee, write_corpus

DICOM = Path(__file__).parents[1] / "data" / "dicom"


@pytest.fixture
def knees(tmp_path):
    folder = tmp_path / "knees"
    write_corpus(folder, people=6, seed=1, image_size=40, overlap=0, split="train")
    for split, person in (("val", "9000003"), ("test", "9000004"), ("auto_test", "9000004")):
        (folder / split / "2").mkdir(parents=True)
        draw_knee(2, "L", int(person), 40).save(folder / split / "2" / f"{person}L.png")
    return folder


def _rows(corpus) -> dict:
    return {
        split: sorted((row["image"].tobytes(), row["label"], row["laterality"]) for row in rows)
        for split, rows in corpus.items()
    }


def _load(folder, tmp_path, **options):
    return datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "hub cache"), **options)


@pytest.mark.parametrize("streaming", [False, True])
def test_it_loads_without_our_code(knees, tmp_path, run_python, streaming):
    """In a process whose only import is `datasets`, out of a place where ours cannot be found."""
    assert main([str(knees), str(tmp_path / "out"), "--rows_of_shard", "5"]) == 0
    code = (
        "import hashlib, sys\nfrom datasets import load_dataset\n"
        f"for split, rows in load_dataset(sys.argv[1], streaming={streaming}, cache_dir='cache').items():\n"
        "    rows = list(rows)\n"
        "    print(split, len(rows), {row['image'].mode for row in rows})\n"
        "assert 'dataset_script' not in sys.modules"
    )
    result = run_python("-I", "-c", code, tmp_path / "out", cwd=tmp_path)
    assert result.stdout.splitlines() == [
        "train 12 {'L'}",
        "validation 1 {'L'}",
        "test 1 {'L'}",
        "auto_test 1 {'L'}",
    ]
    assert len(list((tmp_path / "out" / "data").glob("train-*-of-00003.parquet"))) == 3


def test_pixels_labels_and_features_are_the_same(knees, tmp_path):
    assert main([str(knees), str(tmp_path / "out")]) == 0
    expected = load_knee_xray(knees, cache_dir=str(tmp_path / "cache"))
    exported = _load(tmp_path / "out", tmp_path)
    assert _rows(exported) == _rows(expected)
    assert exported["train"].features == expected["train"].features
    assert _rows(load_knee_xray(tmp_path / "out", cache_dir=str(tmp_path / "cache"))) == _rows(expected)


def test_people_are_pseudonyms_that_a_key_repeats(knees, tmp_path):
    real = {xray.person_id for xrays in list_files(knees).values() for xray in xrays}
    assert main([str(knees), str(tmp_path / "out")]) == 0
    key = tmp_path / "out.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and not list((tmp_path / "out").rglob("*key*"))
    assert main([str(knees), str(tmp_path / "again"), "--key", str(key)]) == 0
    assert main([str(knees), str(tmp_path / "other")]) == 0
    first, again, other = (_load(tmp_path / name, tmp_path)["train"] for name in ("out", "again", "other"))
    assert first["person_id"][:] == again["person_id"][:]
    assert not set(first["person_id"]) & (set(other["person_id"]) | real)
    assert len(set(first["person_id"])) == 6  # both knees still share one
    assert first["person_id"][:] == sorted(first["person_id"])  # not in the order of the ids
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [person for person in real if person.encode() in content], path
    person = sorted(real)[0]
    assert pseudonym(person, bytes.fromhex(key.read_text())) in {*first["person_id"]}


def test_person_ids_are_kept_on_request(knees, tmp_path):
    assert main([str(knees), str(tmp_path / "out"), "--keep_person_ids"]) == 0
    rows = _load(tmp_path / "out", tmp_path)["validation"]
    assert rows[0]["person_id"] == "9000003" and rows[0]["file"] == "val/2/9000003L.png"
    assert not (tmp_path / "out.key").exists()


def test_dicom_metadata_never_goes_through(tmp_path):
    pytest.importorskip("pydicom")
    with open(tmp_path / "knees.csv", "w", newline="") as file:
        rows = [("file", "label"), ("GENERATED^KNEE.dcm", 3)]
        csv.writer(file).writerows(rows)
    shutil.copy(DICOM / "jpeg_2000.dcm", tmp_path / "GENERATED^KNEE.dcm")
    assert main([str(tmp_path / "knees.csv"), str(tmp_path / "out"), "--source", "here", "--license", "cc0-1.0"]) == 0
    [row] = _load(tmp_path / "out", tmp_path)["train"]
    expected = read_radiograph(DICOM / "jpeg_2000.dcm").image
    assert row["image"].tobytes() == expected.tobytes() and row["image"].info == {}
    assert row["laterality"] == "L" and len(row["person_id"]) == 16
    for path in (tmp_path / "out").rglob("*.*"):
        content = path.read_bytes() if path.is_file() else b""
        for word in (b"GENERATED", b"1.2.826", b"DICM", b"dcm", str(tmp_path).encode()):
            assert word not in content, (path, word)


def test_inverted_and_deep_xrays_are_exported_as_training_sees_them(tmp_path):
    import numpy as np
    from PIL import Image, ImageOps

    (tmp_path / "knees/train/0").mkdir(parents=True)
    knee = draw_knee(0, "L", 1, 64)
    ImageOps.invert(knee).save(tmp_path / "knees/train/0/a.png")
    Image.fromarray(np.asarray(knee, np.uint16) * 100).save(tmp_path / "knees/train/0/b.tif")
    assert main([str(tmp_path / "knees"), str(tmp_path / "out"), "--keep_person_ids"]) == 0
    inverted, deep = _load(tmp_path / "out", tmp_path)["train"]
    assert inverted["image"].tobytes() == knee.tobytes()
    assert deep["image"].tobytes() == read_radiograph(tmp_path / "knees/train/0/b.tif").image.tobytes()
    assert "1 of 2 were stored with bone dark" in (tmp_path / "out/README.md").read_text()


def test_the_card(knees, tmp_path):
    from huggingface_hub import DatasetCard

    for path in list((knees / "train").rglob("*.png")):  # names as the release has them
        path.rename(path.with_name(f"91{path.name[2:]}"))
    assert main([str(knees), str(tmp_path / "out")]) == 0
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "cc-by-4.0" and "10.17632/56rmx5bjcr.1" in card.content
    assert [entry["split"] for entry in card.data.configs[0]["data_files"]] == list(list_files(knees))
    sizes = {split["name"]: split["num_examples"] for split in card.data.dataset_info["splits"]}
    assert sizes == {"train": 12, "validation": 1, "test": 1, "auto_test": 1}
    assert "| validation | 0 | 0 | 1 | 0 | 0 | 1 | 1 |" in card.content


def test_refusals_leave_nothing(knees, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    assert main([str(knees), str(tmp_path / "full")]) == 2 and "not an empty folder" in capsys.readouterr().err
    broken = next((knees / "train").rglob("*.png"))
    broken.write_bytes(broken.read_bytes()[:300])
    assert main([str(knees), str(tmp_path / "out")]) == 2 and broken.name in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*writing"))
    (tmp_path / "bad.key").write_text("secret")
    assert main([str(knees), str(tmp_path / "out"), "--key", str(tmp_path / "bad.key")]) == 2
    assert "holds no key" in capsys.readouterr().err
    assert os.listdir(tmp_path / "full") == ["mine"]


def test_an_export_of_an_export_of_several_shards(knees, tmp_path):
    """Parquet is read in its own order, one pass to a shard, and gives the same X-rays."""
    assert main([str(knees), str(tmp_path / "out"), "--rows_of_shard", "5"]) == 0
    assert main([str(tmp_path / "out"), str(tmp_path / "again"), "--rows_of_shard", "7"]) == 0
    assert _rows(_load(tmp_path / "again", tmp_path)) == _rows(_load(tmp_path / "out", tmp_path))
