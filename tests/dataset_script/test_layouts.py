"""Every layout gives the same X-rays, and what is none says so."""

import csv
import os
import re
import shutil
import stat
import zipfile
from pathlib import Path

import datasets
import pytest
from PIL import Image

from clip_koa.grading.inputs import find_xrays
from dataset_script.audit import audit_corpus
from dataset_script.audit import main as audit_main
from dataset_script.export import main as export_main
from dataset_script.knee_xray import KneeXray, load_knee_xray
from dataset_script.layouts import (
    RELEASE_COUNTS,
    CorpusError,
    Xray,
    find_files,
    list_files,
    read_contents,
    release_differences,
    resolve_data_dir,
)
from dataset_script.radiograph import read_radiograph
from dataset_script.splitter import main as split_main
from dataset_script.synthetic import draw_knee

DICOM = Path(__file__).parents[1] / "data" / "dicom"
PEOPLE = {"train": ("9000001", "9000002"), "val": ("9000003",), "test": ("9000004",)}


@pytest.fixture
def tree(tmp_path):
    """The plain folder: three splits, four people, both knees; and auto_test, the test people again."""
    folder = tmp_path / "tree"
    for split, people in PEOPLE.items():
        for number, person in enumerate(people):
            for side in "LR":
                path = folder / split / str(number) / f"{person}{side}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                draw_knee(number, side, int(person), image_size=40).save(path)
    (folder / "auto_test" / "3").mkdir(parents=True)
    draw_knee(3, "L", 4, image_size=40).save(folder / "auto_test" / "3" / "9000004_1.png")
    return folder


@pytest.fixture
def load(tmp_path):
    return lambda data: load_knee_xray(data, cache_dir=str(tmp_path / "cache"))


def _archive(path: Path, tree: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "a") as archive:
        for file in sorted(tree.rglob("*")):
            archive.write(file, prefix + file.relative_to(tree).as_posix())
    return path


def _rows(corpus) -> dict:
    """What the corpus holds, whatever its files are called: pixels, grade, person and side by split."""
    return {
        split: sorted(
            (row["person_id"], row["laterality"], row["label"], row["image"].convert("L").tobytes()) for row in rows
        )
        for split, rows in corpus.items()
    }


def _release(tmp_path, tree):
    path = _archive(tmp_path / "KneeXrayData.zip", tree, "KneeXrayData/ClsKLData/kneeKL224/")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("KneeXrayData/DetData/boxes.h5", b"x")
        archive.writestr("__MACOSX/KneeXrayData/._train", b"x")
        image = tree / "train/0/9000001L.png"
        archive.write(image, "KneeXrayData/ClsKLData/kneeKL299/train/0/9000009L.png")
    return path


def _release_in_a_folder(tmp_path, tree):
    (tmp_path / "downloads").mkdir()
    shutil.move(_release(tmp_path, tree), tmp_path / "downloads")
    return tmp_path / "downloads"


def _kaggle(tmp_path, tree):
    return _archive(tmp_path / "archive.zip", tree)


def _wrapped(tmp_path, tree):
    return _archive(tmp_path / "knees.ZIP", tree, "download/knee osteoarthritis/")


def _larger_release(tmp_path, tree):
    (tmp_path / "unpacked/ClsKLData").mkdir(parents=True)
    shutil.copytree(tree, tmp_path / "unpacked/ClsKLData/kneeKL299")
    return tmp_path / "unpacked"


def _metadata_per_split(tmp_path, tree):
    folder = tmp_path / "imagefolder"
    for split in ("train", "val", "test", "auto_test"):
        rows = [("file_name", "label", "person_id", "laterality", "site")]
        for path in sorted((tree / split).rglob("*.png")):
            name = f"images/{len(rows)}.png"
            (folder / split / "images").mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / split / name)
            side = path.stem[7:] if path.stem[7:] in ("L", "R") else ""
            rows.append((name, path.parent.name, path.stem[:7], side, "A"))
        _write_csv(folder / split / "metadata.csv", rows)
    return folder


def _metadata_at_the_root(tmp_path, tree):
    rows = [("file_name", "label"), *((p.relative_to(tree).as_posix(), p.parent.name) for p in tree.rglob("*.png"))]
    _write_csv(tree / "metadata.csv", rows)
    return tree


def _table(tmp_path, tree):
    rows = [("file", "label", "split", "person_id", "laterality")]
    for number, path in enumerate(sorted(tree.rglob("*.png"))):
        copy = tree.parent / "flat" / f"{number}.png"
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(path, copy)
        side = path.stem[7:].replace("_1", "")
        split = path.relative_to(tree).parts[0]
        rows.append((f"flat/{number}.png", f"{path.parent.name}.0", split, path.stem[:7], side.lower()))
    return _write_csv(tree.parent / "knees.csv", rows)


def _parquet(tmp_path, tree):
    builder = KneeXray("folder", data_dir=tree, cache_dir=str(tmp_path / "parquet cache"))
    builder.download_and_prepare(str(tmp_path / "parquet"), file_format="parquet")
    return tmp_path / "parquet"


def _write_csv(path: Path, rows) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


LAYOUTS = (
    _release,
    _release_in_a_folder,
    _kaggle,
    _wrapped,
    _larger_release,
    _metadata_per_split,
    _metadata_at_the_root,
    _table,
    _parquet,
)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_xrays(layout, tree, load, tmp_path):
    expected = _rows(load(tree))
    assert {split: len(rows) for split, rows in expected.items()} == {
        "train": 4,
        "validation": 2,
        "test": 2,
        "auto_test": 1,
    }
    data = layout(tmp_path, tree)
    before = sorted(tmp_path.rglob("*.png"))
    assert _rows(load(data)) == expected
    assert sorted(tmp_path.rglob("*.png")) == before  # nothing was unpacked


@pytest.mark.parametrize("layout", [_kaggle, _parquet])
def test_archives_and_parquet_stream_and_work_in_several_processes(layout, tree, tmp_path):
    data = layout(tmp_path, tree)
    streamed = KneeXray("folder", data_dir=data, cache_dir=str(tmp_path / "one")).as_streaming_dataset()
    names = [row["file"] for row in streamed["train"]]
    builder = KneeXray("folder", data_dir=data, cache_dir=str(tmp_path / "two"))
    builder.download_and_prepare(num_proc=2)
    assert len(names) == 4 and sorted(builder.as_dataset()["train"]["file"]) == sorted(names)


def test_a_folder_inside_an_archive_is_chosen(tree, load, tmp_path):
    archive = _release(tmp_path, tree)
    assert [row["person_id"] for row in load(archive / "kneeKL299")["train"]] == ["9000009"]
    assert len(load(archive / "KneeXrayData/ClsKLData/kneeKL224")["train"]) == 4
    with pytest.raises(CorpusError, match="holds 0 folders that end with kneeKL300"):
        list_files(archive / "kneeKL300")


def test_a_changed_archive_is_noticed(tree, load, tmp_path):
    archive = _kaggle(tmp_path, tree)
    assert len(load(archive)["train"]) == 4
    with zipfile.ZipFile(archive, "a") as opened:
        opened.write(tree / "train/0/9000001L.png", "train/0/9000007L.png")
    assert len(load(archive)["train"]) == 5


def test_a_file_of_the_same_name_in_the_working_folder_is_not_taken(tree, load, tmp_path, monkeypatch):
    data = _kaggle(tmp_path, tree)
    (tmp_path / "here").mkdir()
    Image.new("L", (40, 40), 9).save(tmp_path / "here" / "9000001L.png")
    monkeypatch.chdir(tmp_path / "here")
    assert load(data)["train"][0]["image"].convert("L").getextrema() != (9, 9)


def test_grade_folders_without_splits_are_all_for_training(tree, load):
    corpus = load(tree / "train")
    assert {split: len(rows) for split, rows in corpus.items()} == {"train": 4}
    assert corpus["train"][0]["file"] == "0/9000001L.png"


# A table over DICOM files.


@pytest.fixture
def dicom_table(tmp_path):
    pytest.importorskip("pydicom")
    (tmp_path / "dicom").mkdir()
    rows = [("file", "label", "person_id", "laterality")]
    for number, name in enumerate(("window", "jpeg_lossless_sv1", "rle")):
        shutil.copy(DICOM / f"{name}.dcm", tmp_path / "dicom" / f"image {number}")
        rows.append((f"dicom/image {number}", number, f"person {number}", "L" if number else ""))
    return _write_csv(tmp_path / "graded.csv", rows)


def test_a_table_over_dicom(dicom_table, load):
    rows = load(dicom_table)["train"]
    assert list(rows["label"]) == [0, 1, 2] and list(rows["person_id"]) == ["person 0", "person 1", "person 2"]
    assert list(rows["laterality"]) == ["L", "L", "L"]  # the first from the DICOM file
    expected = read_radiograph(DICOM / "window.dcm").image
    assert rows[1]["image"].mode == "L" and rows[1]["image"].tobytes() == expected.tobytes()
    stored = rows.cast_column("image", datasets.Image(decode=False))[0]["image"]
    assert stored["bytes"].startswith(b"\x89PNG") and b"GENERATED" not in stored["bytes"]


def test_a_side_that_the_dicom_file_contradicts_is_refused(dicom_table, load):
    dicom_table.write_text(dicom_table.read_text().replace("person 1,L", "person 1,R"))
    with pytest.raises(CorpusError, match="image 1 is listed as R but is the side L"):
        load(dicom_table)


def test_dicom_files_in_folders_tell_their_people(tmp_path):
    """Both splits hold PatientID GENERATED-7, which no name tells."""
    pytest.importorskip("pydicom")
    for split in ("train", "val"):
        (tmp_path / split / "0").mkdir(parents=True)
        shutil.copy(DICOM / "window.dcm", tmp_path / split / "0" / f"{split}.dcm")
    with pytest.raises(CorpusError, match="Person GENERATED-7 is in two splits"):
        find_files(tmp_path)


# The same fifteen files of five people, however they are packed: no name tells a person.


def _dicom_folder(tmp_path, suffix=""):
    """Five people, three X-rays each; the last person is in both splits."""
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.dcmread(DICOM / "window.dcm")
    folder = tmp_path / "dicom"
    for number in range(15):
        dataset.PatientID, dataset.ImageLaterality = f"P{number % 5}", "LR"[number // 5 % 2]
        split = "val" if number == 14 else "train"
        (folder / split / "1").mkdir(parents=True, exist_ok=True)
        dataset.save_as(folder / split / "1" / f"IM{number:04d}{suffix}")
    return folder


def _dicom_archive(tmp_path):
    return _archive(tmp_path / "dicom.zip", _dicom_folder(tmp_path))


def _dicom_csv(tmp_path):
    folder = _dicom_folder(tmp_path)
    rows = [("file", "label", "split")]
    rows += [(path.relative_to(tmp_path).as_posix(), 1, path.parts[-3]) for path in sorted(folder.rglob("IM*"))]
    return _write_csv(tmp_path / "knees.csv", rows)


def _dicom_metadata(tmp_path):
    folder = _dicom_folder(tmp_path)
    rows = [(path.relative_to(folder).as_posix(), 1) for path in sorted(folder.rglob("IM*"))]
    _write_csv(folder / "metadata.csv", [("file_name", "label"), *rows])
    return folder


def _dicom_parquet(tmp_path):
    import pyarrow
    from pyarrow import parquet

    for split in ("train", "val"):
        contents = [path.read_bytes() for path in sorted(_dicom_folder(tmp_path).rglob(f"{split}/1/IM*"))]
        table = pyarrow.table({"image": [{"bytes": one} for one in contents], "label": [1] * len(contents)})
        parquet.write_table(table.append_column("person_id", [[""] * len(contents)]), tmp_path / f"{split}.parquet")
    shutil.rmtree(tmp_path / "dicom")
    return tmp_path


@pytest.mark.parametrize(
    "pack",
    [
        _dicom_folder,
        lambda tmp_path: _dicom_folder(tmp_path, ".dcm"),
        lambda tmp_path: _dicom_folder(tmp_path, ".IMA"),
        lambda tmp_path: _dicom_folder(tmp_path, ".png"),
        _dicom_archive,
        _dicom_csv,
        _dicom_metadata,
        _dicom_parquet,
    ],
)
def test_who_the_person_is_does_not_depend_on_the_container(pack, tmp_path):
    data = pack(tmp_path)
    splits = list_files(data)
    everyone = [xray for xrays in splits.values() for xray in xrays]
    assert sorted(xray.person_id for xray in everyone) == sorted(f"P{number % 5}" for number in range(15))
    assert sorted(xray.laterality for xray in everyone) == ["L"] * 10 + ["R"] * 5
    with pytest.raises(CorpusError, match="Person P4 is in two splits"):
        find_files(data)
    assert [entry["person_id"] for entry in audit_corpus(data)["people_in_several_splits"]] == ["P4"]


def test_a_header_longer_than_what_is_read_at_first(tmp_path):
    """In an archive a DICOM file's beginning is read; the id may come later."""
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.dcmread(DICOM / "window.dcm")
    dataset.add_new(0x00091010, "OB", bytes(2 << 20))
    dataset.PatientID = "late"
    (tmp_path / "train" / "0").mkdir(parents=True)
    dataset.save_as(tmp_path / "train" / "0" / "IM1")
    archive = _archive(tmp_path / "knees.zip", tmp_path / "train", "train/")
    assert list_files(archive)["train"][0].person_id == "late"


@pytest.fixture
def disputed(tmp_path):
    """A table that keeps apart whom the DICOM files call one."""
    folder = _dicom_folder(tmp_path)
    rows = [("file", "label", "split", "person_id")]
    for number, path in enumerate(sorted(folder.rglob("IM*"))):
        rows.append((path.relative_to(tmp_path).as_posix(), 1, path.parts[-3], f"T{number}"))
    return _write_csv(tmp_path / "knees.csv", rows)


def test_a_table_that_contradicts_its_files_is_told(disputed, caplog):
    KneeXray("folder", data_dir=disputed)
    [dispute] = audit_corpus(disputed)["disputed_people"]
    assert re.search(r"is listed as T4 and .*IM0014 \(validation\) as T14, but both files say .* of P4", dispute)
    assert dispute in caplog.text and dispute in audit_corpus(disputed)["problems"]
    assert [xray.person_id for xray in list_files(disputed)["validation"]] == ["T14"]  # the table's word stands


def test_an_id_that_all_files_share_is_nobodys(disputed):
    pydicom = pytest.importorskip("pydicom")
    for path in (disputed.parent / "dicom").rglob("IM*"):
        dataset = pydicom.dcmread(path)
        dataset.PatientID = "ANONYMOUS"
        dataset.save_as(path)
    assert audit_corpus(disputed)["disputed_people"] == []


# Content decides, and common names are understood.


def _copy_as(tree, target, splits, grades):
    for path in sorted(tree.rglob("*.png")):
        split, grade = path.relative_to(tree).parts[:2]
        if split in splits:
            copy = target / splits[split] / grades[int(grade)] / path.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    return target


@pytest.mark.parametrize("pack", [lambda path: path, lambda path: _archive(path.with_suffix(".zip"), path)])
@pytest.mark.parametrize(
    "splits, grades",
    [
        (("training", "validation", "testing"), ("0Normal", "1Doubtful", "2Mild", "3Moderate", "4Severe")),
        (("Train", "Val", "Test"), ("Healthy", "Doubtful", "Minimal", "Moderate", "Severe")),
        (("TRAIN", "dev", "eval"), ("KL0", "KL-1", "grade_2", "Grade 3", "klg_4")),
        (("train_set", "valid", "Evaluation"), ("None", "doubtful", "mild", "moderate", "severe")),
    ],
)
def test_common_names_of_splits_and_grades(splits, grades, pack, tree, load, tmp_path):
    named = dict(zip(("train", "val", "test"), splits, strict=True))
    data = pack(_copy_as(tree, tmp_path / "named", named, grades))
    expected = _rows(load(tree))
    expected.pop("auto_test")
    assert _rows(load(data)) == expected
    assert list_files(data).left_out == []


def test_a_mapping_of_grades(tree, load, tmp_path, monkeypatch):
    splits = {"train": "train", "val": "train", "test": "train"}
    data = _copy_as(tree, tmp_path / "named", splits, ("Early", "1Mild", "", "", ""))
    with pytest.raises(CorpusError, match="'1Mild' may mean KL1 and KL2.*--grades 1Mild=GRADE"):
        list_files(data)
    given, expected = "Early=0,1mild=2", [0] * 6 + [2] * 2
    corpus = load_knee_xray(data, cache_dir=str(tmp_path / "c"), grades=given)
    assert corpus["train"]["label"][:] == expected
    assert audit_main([str(data), "--grades", given]) == 0
    assert export_main([str(data), str(tmp_path / "out"), "--grades", given]) == 0
    assert sorted(load(tmp_path / "out")["train"]["label"]) == expected  # exported once, it trains everywhere
    assert split_main([str(data), "--output", str(tmp_path / "split.csv"), "--grades", given]) == 0
    graded = [xray.grade for xrays in list_files(tmp_path / "split.csv").values() for xray in xrays]
    assert sorted(graded) == expected
    with pytest.raises(CorpusError, match="holds nothing that is called nowhere"):
        list_files(data, given + ",nowhere=3")
    for wrong in ("Early", "Early=5", "=1", "Early=0,early=1"):
        with pytest.raises(CorpusError, match="^grades: "):
            list_files(data, wrong)
    monkeypatch.setenv("KNEE_XRAY_GRADES", given + ",nowhere=3")
    assert len(list_files(data)["train"]) == 8


def test_two_names_of_one_grade_are_ambiguous(tree, tmp_path):
    data = _copy_as(tree, tmp_path / "named", {"train": "train"}, ("Minimal", "Mild", "", "", ""))
    with pytest.raises(CorpusError, match="named/train/Mild and .*named/train/Minimal all mean KL2.*--grades"):
        list_files(data)
    assert [xray.grade for xray in list_files(data, "Minimal=1,Mild=2")["train"]] == [1, 1, 2, 2]


def test_splits_inside_grades_are_not_mixed(tree, tmp_path):
    shutil.move(tree / "train", tmp_path / "other" / "0" / "train")
    with pytest.raises(CorpusError, match="is a split inside a grade"):
        list_files(tmp_path / "other")


@pytest.mark.parametrize("pack", [lambda path: path, lambda path: _archive(path.with_suffix(".zip"), path)])
def test_content_decides_and_the_rest_is_named(pack, tree, caplog, capsys):
    image = tree / "train" / "0" / "9000001L.png"
    deep = tree / "train" / "0" / "series 1" / "deeper"
    deep.mkdir(parents=True)
    for name in ("IM000001", "x.IMA", "x.jfif", "x.JPE", "x.txt"):
        shutil.copy(image, deep / name)
    (tree / "train" / "0" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0 thumbs")
    (tree / "train" / "notes.txt").write_text("BM is not only how a bitmap begins")
    (tree / ".DS_Store").write_text("x")
    (tree / "extra").mkdir()
    shutil.copy(image, tree / "extra" / "IM000002")
    (tree / "extra" / "scan.gif").write_bytes(b"GIF89a")
    (tree / "extra" / "old").write_bytes(b"\x08\0\x05\0\x0a\0\0\0ISO_IR 100")
    with zipfile.ZipFile(tree / "train" / "0" / "more.zip", "w") as nested:
        nested.write(image, "9000008L.png")
    data = pack(tree)
    listing = list_files(data)
    assert len(listing["train"]) == 4 + 5
    left_out = {one.file: one.kind for one in listing.left_out}
    assert left_out == {
        "train/0/Thumbs.db": "other",
        "train/notes.txt": "other",
        ".DS_Store": "hidden",
        "extra/IM000002": "xray",
        "extra/scan.gif": "image",
        "extra/old": "image",
        "train/0/more.zip": "archive",
    }
    KneeXray("folder", data_dir=data)
    assert "1 X-ray files were not taken: extra/IM000002 (outside the folders" in caplog.text
    assert audit_main([str(data)]) == 1
    printed = capsys.readouterr().out
    for line in (
        "PROBLEM: 1 X-ray files were not taken: extra/IM000002",
        "PROBLEM: 2 images of formats that are not read were not taken: ",
        "note: 1 archives inside the data were not taken: train/0/more.zip",
        "note: 2 other files were not taken: train/0/Thumbs.db, train/notes.txt",
        "note: 1 hidden files and folders were not taken: .DS_Store",
    ):
        assert line in printed


@pytest.mark.parametrize("name", ["5", "KL5", "ungradable"])
def test_a_folder_that_is_no_grade_is_counted_and_named(name, tree):
    shutil.copytree(tree / "train" / "0", tree / "train" / name)
    with pytest.raises(CorpusError, match=f"train/{name}, which holds 2 X-rays, is no grade: .*--grades {name}=GRADE"):
        list_files(tree)


def test_folders_without_xrays_are_no_grades(tree):
    (tree / "train" / "labels").mkdir()
    (tree / "train" / "labels" / "all.txt").write_text("x")
    assert [one.file for one in list_files(tree).left_out] == ["train/labels/all.txt"]


def test_xrays_that_a_table_does_not_name_are_noted(tmp_path, tree):
    table = _table(tmp_path, tree)
    shutil.copy(tmp_path / "flat" / "0.png", tmp_path / "flat" / "IM1")
    shutil.copy(tmp_path / "flat" / "0.png", tmp_path / "holiday.png")  # beside the table, where it names nothing
    [left_out] = list_files(table).left_out
    assert (left_out.file, left_out.kind) == ("flat/IM1", "unlisted")
    assert not [problem for problem in audit_corpus(table)["problems"] if "not taken" in problem]


def test_links_to_folders_are_followed_but_not_in_circles(tree):
    (tree / "train" / "4").symlink_to(tree / "test" / "0")
    (tree / "train" / "0" / "loop").symlink_to(tree / "train")
    assert [xray.file for xray in list_files(tree)["train"] if xray.grade == 4] == [
        "train/4/9000004L.png",
        "train/4/9000004R.png",
    ]


def test_a_picture_of_both_knees_is_refused(tmp_path, load):
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.dcmread(DICOM / "window.dcm")
    dataset.ImageLaterality = "B"
    (tmp_path / "train" / "0").mkdir(parents=True)
    dataset.save_as(tmp_path / "train" / "0" / "both.dcm")
    with pytest.raises(CorpusError, match=r"both\.dcm shows both knees"):
        load(tmp_path)


# Refusals.


@pytest.mark.parametrize(
    "name", ["../evil.png", "/etc/evil.png", "train/../../evil.png", "train\\..\\..\\evil.png", "C:/evil.png"]
)
def test_entries_that_point_outside_are_refused(name, tree, tmp_path):
    archive = _kaggle(tmp_path, tree)
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(name, b"x")
    with pytest.raises(CorpusError, match="archive.zip: the entry .*evil.* points outside the archive"):
        list_files(archive)


def _link(opened):
    entry = zipfile.ZipInfo("train/0/9000008L.png")
    entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    opened.writestr(entry, "/etc/passwd")
    return "is a link"


def _twice(opened):
    with pytest.warns(UserWarning):
        opened.writestr("train/0/9000001L.png", b"x")
    return "is there twice"


@pytest.mark.parametrize("spoil", [_link, _twice])
def test_other_doubtful_entries_are_refused(spoil, tree, tmp_path):
    archive = _kaggle(tmp_path, tree)
    with zipfile.ZipFile(archive, "a") as opened:
        reason = spoil(opened)
    with pytest.raises(CorpusError, match=reason):
        list_files(archive)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.99])
def test_a_truncated_archive_is_refused(share, tree, tmp_path):
    archive = _kaggle(tmp_path, tree)
    archive.write_bytes(archive.read_bytes()[: int(archive.stat().st_size * share)])
    with pytest.raises(CorpusError, match=r"archive\.zip is damaged or no \.zip.*Download it again"):
        list_files(archive)


def test_a_damaged_entry_is_named(tree, load, tmp_path):
    archive = _kaggle(tmp_path, tree)
    with zipfile.ZipFile(archive) as opened:
        entry = opened.getinfo("train/1/9000002L.png")
    content = bytearray(archive.read_bytes())
    start = entry.header_offset + 30 + len(entry.filename) + entry.compress_size // 2
    content[start : start + 20] = bytes(20)
    archive.write_bytes(content)
    with pytest.raises(CorpusError, match=r"archive\.zip/train/1/9000002L\.png is damaged"):
        load(archive)


def test_an_unreadable_xray_in_an_archive_is_named(tree, load, tmp_path):
    (tree / "train" / "1" / "9000002L.png").write_bytes(b"no image")
    with pytest.raises(CorpusError, match=r"archive\.zip/train/1/9000002L\.png is not a PNG"):
        load(_kaggle(tmp_path, tree))


def test_an_unknown_layout_shows_what_was_found_and_expected(tmp_path):
    (tmp_path / "knees").mkdir()
    for number in range(10):
        (tmp_path / f"scan{number}.nii").write_bytes(b"")
    with pytest.raises(
        CorpusError, match=r"but knees/, scan0\.nii.* and 3 more\. Expected one of: \{split\}"
    ) as refusal:
        list_files(tmp_path)
    assert "10.17632/56rmx5bjcr.1" in str(refusal.value) and "CC BY 4.0" in str(refusal.value)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", b"x")
    with pytest.raises(CorpusError, match=r"other\.zip holds no train, val or test folder, but readme\.txt"):
        list_files(tmp_path / "other.zip")
    with pytest.raises(CorpusError, match=r"scan1\.nii is no folder, \.zip, \.csv or \.parquet"):
        list_files(tmp_path / "scan1.nii")


@pytest.mark.parametrize(
    "rows, reason",
    [
        ([("name", "label")], "no column 'file', but"),
        ([("file", "grade")], "no column 'label', but"),
        ([("file", "label")], "names no X-rays"),
        ([("file", "label"), ("nowhere.png", 1)], r"line 2: there is no file 'nowhere\.png'"),
        ([("file", "label"), ("a.png", 5)], "line 2: label '5' must be"),
        ([("file", "label"), ("a.png", "")], "line 2: label '' must be"),
        ([("file", "label"), ("a.png", "nan")], "label 'nan' must be"),
        ([("file", "label"), ("a.png", 1), ("a.png", 2)], "line 3: 'a.png' is there twice"),
        ([("file", "label", "laterality"), ("a.png", 1, "left")], "laterality 'LEFT' must be L or R"),
        ([("file", "label", "split"), ("a.png", 1, "holdout")], "split 'holdout' must be one of"),
    ],
)
def test_tables_that_are_wrong_name_the_line(rows, reason, tmp_path):
    draw_knee(0, "L", 0, 40).save(tmp_path / "a.png")
    with pytest.raises(CorpusError, match=reason):
        list_files(_write_csv(tmp_path / "knees.csv", rows))


def test_parquet_that_is_wrong_is_refused(tmp_path):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "train.parquet"
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(CorpusError, match=r"train\.parquet is damaged or no Parquet file"):
        list_files(tmp_path)
    parquet.write_table(pyarrow.table({"image": [b"x"], "grade": [1]}), path)
    with pytest.raises(CorpusError, match="no column 'label', but"):
        list_files(tmp_path)
    parquet.write_table(pyarrow.table({"image": [b"x"], "label": [7]}), path)
    with pytest.raises(CorpusError, match=r"train\.parquet row 0: label 7"):
        list_files(path)
    parquet.write_table(pyarrow.table({"image": [{"path": "a.png"}], "label": [1]}), path)
    with pytest.raises(CorpusError, match="holds no image bytes: its column image is of the type struct"):
        list_files(path)
    parquet.write_table(pyarrow.table({"image": pyarrow.nulls(1, pyarrow.binary()), "label": [1]}), path)
    with pytest.raises(CorpusError, match="row 0 holds no image bytes"):
        list_files(path)


_WRONG_COLUMNS = [
    ({"file": [b"a.png"]}, "column 'file' is of the type binary, it must hold strings"),
    ({"file": [7]}, "column 'file' is of the type int64, it must hold strings"),
    ({"laterality": [1]}, "column 'laterality' is of the type int64"),
    ({"person_id": [["a"]]}, "column 'person_id' is of the type list"),
    ({"label": [None]}, "row 0: label None must be"),
    ({"label": [1.5]}, "row 0: label 1.5 must be"),
    ({"label": [float("nan")]}, "row 0: label nan must be"),
    ({"label": ["early"]}, "row 0: label 'early' must be.*--grades early=GRADE"),
    ({"label": [True]}, "column 'label' is of the type bool"),
    ({"image": [5]}, "holds no image bytes: its column image is of the type int64"),
    ({"image": ["a.png"]}, "holds no image bytes: its column image is of the type string"),
]


@pytest.mark.parametrize("columns, reason", _WRONG_COLUMNS)
def test_parquet_of_other_types_gets_one_line(columns, reason, tmp_path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"image": [b"x"], "label": [1], **columns}), tmp_path / "train.parquet")
    with pytest.raises(CorpusError, match=reason) as refusal:
        load_knee_xray(tmp_path / "train.parquet", cache_dir=str(tmp_path / "cache"))
    assert "\n" not in str(refusal.value) and "train.parquet" in str(refusal.value)


@pytest.mark.parametrize("labels", [[2, 4], [2.0, 4.0], ["2", "4.0"], ["KL2", "severe"], ["2Mild", "grade_4"]])
def test_labels_of_any_writing(labels, tmp_path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"image": [b"x", b"y"], "label": labels}), tmp_path / "train.parquet")
    assert [xray.grade for xray in list_files(tmp_path)["train"]] == [2, 4]


def test_class_labels_go_by_their_names(tmp_path):
    """`datasets` numbers the folders of ImageFolder by the alphabet: Healthy is 1 there, and Doubtful 0."""
    from PIL import Image as PillowImage

    names = sorted(("Healthy", "Doubtful", "Minimal", "Moderate", "Severe"))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = {"image": [PillowImage.new("L", (40, 40))] * 5, "label": [0, 1, 2, 3, 4]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    assert [xray.grade for xray in list_files(tmp_path)["train"]] == [1, 0, 2, 3, 4]


@pytest.mark.parametrize("value", [None, "", "nan", "None", float("nan")])
def test_an_empty_person_id_is_an_absent_one(value, tmp_path):
    import pyarrow
    from pyarrow import parquet

    kind = pyarrow.float64() if isinstance(value, float) else pyarrow.string()
    people = pyarrow.array([value] * 2, kind)
    for split in ("train", "test"):
        table = pyarrow.table({"image": [b"x"] * 2, "label": [0] * 2, "person_id": people})
        parquet.write_table(table, tmp_path / f"{split}.parquet")
    assert {xray.person_id for xrays in find_files(tmp_path).values() for xray in xrays} == {None}


def test_person_ids_that_are_numbers(tmp_path):
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"image": [b"x"] * 2, "label": [0] * 2, "person_id": [9000001.0, None]})
    parquet.write_table(table, tmp_path / "train.parquet")
    assert [xray.person_id for xray in list_files(tmp_path)["train"]] == ["9000001", None]


def test_rows_of_parquet_in_any_order(tmp_path):
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"image": [bytes([number]) for number in range(50)], "label": [0] * 50})
    parquet.write_table(table, tmp_path / "train.parquet", row_group_size=7)
    xrays = list_files(tmp_path)["train"]
    for order in ([3, 4, 40], [40, 3, 49, 48, 0], [7, 7]):
        contents = read_contents(xrays[row] for row in order)
        assert [content for _, content in contents] == [bytes([row]) for row in order]


def test_parquet_that_is_damaged_inside_or_has_changed_is_refused(tmp_path):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "train.parquet"
    table = pyarrow.table({"image": [bytes([number]) * 500 for number in range(90)], "label": [0] * 90})
    parquet.write_table(table, path, row_group_size=30, use_dictionary=False)
    xrays = list_files(tmp_path)["train"]
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)  # the first page and its header
    path.write_bytes(content)
    with pytest.raises(CorpusError, match=r"train\.parquet is damaged: a page of its column image"):
        list(read_contents(xrays))
    parquet.write_table(table.slice(0, 10), path)
    with pytest.raises(CorpusError, match="has no row 10: it has changed"):
        list(read_contents(xrays))


def test_auto_test_never_joins_the_test_split_of_parquet(tree, tmp_path):
    splits = list_files(_parquet(tmp_path, tree))
    assert (len(splits["test"]), len(splits["auto_test"])) == (2, 1)


def test_counts_that_differ_from_the_release_are_reported_not_fatal(tree, load, caplog):
    differences = release_differences(list_files(tree))
    assert "train has 2 X-rays of KL0, the official release 2286" in differences
    load(tree)
    assert "official release 2286" in caplog.text


def test_the_whole_release_has_no_differences():
    splits = {}
    for split, counts in RELEASE_COUNTS.items():
        splits[split] = [
            Xray(split, grade, f"{split}/{grade}/9{number:06d}L.png", Path("x"), None, f"9{number:06d}")
            for grade, count in enumerate(counts)
            for number in range(count)
        ]
    assert release_differences(splits) == []
    assert len(release_differences({"train": splits["train"][:-1]})) == 1
    unlike = [Xray("train", 0, "x", Path("x"), None, "someone else")]
    assert release_differences({"train": unlike}) == []
    # Other X-rays of the same people are not the release.
    others = [Xray("train", 0, "xrays/film_0.png", Path("x"), None, "9000001")]
    assert release_differences({"train": others}) == []


def test_instructions_where_there_is_nothing(tmp_path):
    with pytest.raises(CorpusError, match=r"there is no such folder or file.*kneeKL224 folder.*10\.17632.*CC BY 4\.0"):
        resolve_data_dir(tmp_path / "KneeXrayData.zip")


def test_grading_finds_the_same_suffixes(tmp_path):
    for name in ("a.tif", "b.DCM", "c.bmp", "d.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [Path(file).name for file in find_xrays([tmp_path])] == ["a.tif", "b.DCM", "c.bmp"]


def test_grading_goes_by_content_and_names_the_rest(tmp_path, caplog):
    draw_knee(0, "L", 0, 40).save(tmp_path / "x.png")
    (tmp_path / "deep").mkdir()
    for name in ("deep/IM000001", "x.IMA", "x.jfif", "X.JPE"):
        shutil.copy(tmp_path / "x.png", tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "Thumbs.db").write_bytes(b"\xd0\xcf")
    (tmp_path / "x.gif").write_bytes(b"GIF89a")
    (tmp_path / "._x.png").write_bytes(b"\0\5\x16\7")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / ".git").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "deep")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    found = [str(Path(file).relative_to(tmp_path)) for file in find_xrays([tmp_path])]
    assert found == ["X.JPE", "deep/IM000001", "x.IMA", "x.jfif", "x.png"]
    for line in ("1 X-ray files were not taken", "gone.png (no regular file)", "x.gif (GIF is not read)"):
        assert line in caplog.text
    for line in ("3 other files", "notes.txt", "2 hidden files and folders", "links to folders are not followed"):
        assert line in caplog.text


@pytest.mark.real
def test_the_real_corpus_out_of_an_archive(knee_xray_dir, tmp_path):
    """The validation split as the release packs it."""
    archive = tmp_path / "KneeXrayData.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for path in (knee_xray_dir / "val").rglob("*.webp"):
            opened.write(path, f"KneeXrayData/ClsKLData/kneeKL224/{path.relative_to(knee_xray_dir).as_posix()}")
    rows = load_knee_xray(archive, cache_dir=str(tmp_path / "cache"))["validation"]
    assert tuple(list(rows["label"]).count(grade) for grade in range(5)) == RELEASE_COUNTS["validation"]
    assert release_differences(find_files(archive)) == []
