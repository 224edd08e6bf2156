"""The corpus builder: what it reads, what it refuses and how it says so."""

import os
import shutil
from collections import Counter

import pytest
from PIL import Image

from dataset_script.knee_xray import GRADE_LABELS, CorpusError, KneeXray, load_knee_xray, resolve_data_dir
from dataset_script.synthetic import draw_knee
from modeling_clip_koa import GRADE_LABELS as MODEL_LABELS


@pytest.fixture
def folder(tmp_path):
    """A small corpus of three splits: four people, both knees."""
    for split, people in {"train": ("9000001", "9000002"), "val": ("9000003",), "test": ("9000004",)}.items():
        for number, person in enumerate(people):
            for side in "LR":
                path = tmp_path / "data" / split / str(number) / f"{person}{side}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                draw_knee(number, side, 1, image_size=48).save(path)
    return tmp_path / "data"


@pytest.fixture
def load(tmp_path):
    def load(data_dir, **settings):
        return load_knee_xray(data_dir, cache_dir=str(tmp_path / "cache"), **settings)

    return load


def test_splits_features_and_order(folder, load):
    corpus = load(folder)
    assert {split: len(rows) for split, rows in corpus.items()} == {"train": 4, "validation": 2, "test": 2}
    first = corpus["train"][0]
    assert first["person_id"] == "9000001" and first["laterality"] == "L" and first["label"] == 0
    assert first["file"] == "train/0/9000001L.png" and first["image"].size == (48, 48)
    assert corpus["train"].features["label"].names == list(GRADE_LABELS)


def test_labels_are_those_of_the_model():
    assert GRADE_LABELS == MODEL_LABELS


def test_the_releases_inner_folder_is_found(folder, load, tmp_path):
    inner = tmp_path / "unpacked" / "KneeXrayData" / "ClsKLData" / "kneeKL224"
    inner.parent.mkdir(parents=True)
    shutil.copytree(folder, inner)
    assert len(load(tmp_path / "unpacked")["train"]) == 4


def test_formats_case_and_clutter(folder, load):
    image = draw_knee(2, "L", 3, image_size=48)
    (folder / "train" / "2").mkdir()
    for name in ("9000007L.JPG", "9000007R.webp", "name with spaces é.jpeg"):
        image.save(folder / "train" / "2" / name)
    (folder / "train" / ".DS_Store").write_text("x")
    (folder / "train" / "2" / "._9000007L.png").write_text("x")
    (folder / "train" / "2" / "notes.txt").write_text("x")
    (folder / "__MACOSX").mkdir()
    rows = load(folder)["train"]
    assert len(rows) == 7
    assert [row["person_id"] for row in rows][-1] == ""  # a name that tells no person


def test_auto_test_stays_apart(folder, load):
    (folder / "auto_test" / "0").mkdir(parents=True)
    draw_knee(0, "L", 4, image_size=48).save(folder / "auto_test" / "0" / "9000004_1.png")
    corpus = load(folder)
    assert len(corpus["test"]) == 2 and len(corpus["auto_test"]) == 1


def test_changed_files_are_noticed(folder, load):
    load(folder)
    draw_knee(1, "L", 5, image_size=48).save(folder / "train" / "1" / "9000009L.png")
    assert len(load(folder)["train"]) == 5
    (folder / "train" / "1" / "9000009L.png").unlink()
    assert len(load(folder)["train"]) == 4
    path = folder / "train" / "0" / "9000001L.png"
    digest = KneeXray("folder", data_dir=folder).manifest_digest
    Image.new("L", (48, 48), 77).save(path)
    os.utime(path, ns=(1, 1))
    assert KneeXray("folder", data_dir=folder).manifest_digest != digest
    assert load(folder)["train"][0]["image"].convert("L").getpixel((0, 0)) == 77


def _unreadable(folder):
    (folder / "train" / "0" / "9000001L.png").write_bytes(b"no image")
    return "9000001L.png"


def _truncated(folder):
    path = folder / "train" / "0" / "9000001L.png"
    path.write_bytes(path.read_bytes()[:600])
    return "9000001L.png"


def _grade_outside(folder):
    (folder / "train" / "5").mkdir()
    return "0 to 4"


def _empty_split(folder):
    shutil.rmtree(folder / "val")
    (folder / "val").mkdir()
    return "val is empty"


def _shared_person(folder):
    shutil.copy(folder / "train" / "0" / "9000001L.png", folder / "val" / "0" / "9000001R.png")
    return "9000001 is in two splits"


def _no_split(folder):
    for split in ("train", "val", "test"):
        shutil.rmtree(folder / split)
    return "10.17632/56rmx5bjcr.1"


@pytest.mark.parametrize("spoil", [_unreadable, _truncated, _grade_outside, _empty_split, _shared_person, _no_split])
def test_refusals_name_what_is_wrong(folder, load, spoil):
    expected = spoil(folder)
    with pytest.raises(CorpusError) as refusal:
        load(folder)
    assert expected in str(refusal.value)
    with pytest.raises(CorpusError):  # nothing half-built is found in the cache the second time
        load(folder)


def test_a_missing_corpus_gets_instructions(tmp_path, monkeypatch):
    monkeypatch.delenv("KNEE_XRAY_DIR", raising=False)
    with pytest.raises(CorpusError, match=r"KNEE_XRAY_DIR.*10\.17632.*CC BY"):
        resolve_data_dir("")
    with pytest.raises(CorpusError, match="no such folder"):
        resolve_data_dir(tmp_path / "nowhere")
    monkeypatch.setenv("KNEE_XRAY_DIR", str(tmp_path))
    assert resolve_data_dir("") == tmp_path


def test_synthetic_corpus(load):
    corpus = load(None, synthetic=True, people=30, image_size=48, seed=3)
    assert {split: len(rows) for split, rows in corpus.items()} == {"train": 60, "validation": 40, "test": 40}
    people = {split: set(rows["person_id"]) for split, rows in corpus.items()}
    assert not people["train"] & people["validation"] and not people["validation"] & people["test"]
    assert set(Counter(corpus["train"]["label"])) == {0, 1, 2, 3, 4}
    other_seed = load(None, synthetic=True, people=30, image_size=48, seed=4)
    assert other_seed["train"][0]["image"].tobytes() != corpus["train"][0]["image"].tobytes()


def test_as_parquet_everyone_can_load_it(folder, tmp_path):
    """What dataset_script/README.md recommends in place of loading scripts."""
    import datasets

    builder = KneeXray("folder", data_dir=folder, cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare(str(tmp_path / "parquet"), file_format="parquet")
    files = {"train": str(tmp_path / "parquet" / "*train*.parquet")}
    rows = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))["train"]
    assert len(rows) == 4 and rows[0]["image"].size == (48, 48)


@pytest.mark.real
def test_the_real_corpus(knee_xray_dir, load):
    corpus = load(knee_xray_dir)
    counts = {split: [rows["label"].count(grade) for grade in range(5)] for split, rows in _columns(corpus).items()}
    assert counts["train"] == [2286, 1046, 1516, 757, 173]
    assert counts["validation"] == [328, 153, 212, 106, 27]
    people = {split: set(rows["person_id"]) for split, rows in _columns(corpus).items()}
    assert (len(people["train"]), len(people["validation"])) == (2889, 413)
    assert set(corpus["train"]["laterality"]) == {"L", "R"}


def _columns(corpus) -> dict:
    return {split: {name: list(rows[name]) for name in ("label", "person_id")} for split, rows in corpus.items()}
