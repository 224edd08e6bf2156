"""Every layout gives the same X-rays, and what is none says so."""

import csv
import shutil
import stat
import zipfile
from pathlib import Path

import datasets
import pytest
from PIL import Image

from clip_koa.grading.grader import find_xrays
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
from dataset_script.synthetic import draw_knee

DICOM = Path(__file__).parent / "data" / "dicom"
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
        ([("file", "label", "split"), ("a.png", 1, "dev")], "split 'dev' must be one of"),
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
    with pytest.raises(CorpusError, match="row 0 holds no image bytes"):
        list(read_contents(list_files(path)["train"]))


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
    with pytest.raises(CorpusError, match=r"train\.parquet is damaged or cannot be read"):
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
            Xray(split, grade, f"{number}", Path("x"), None, f"9{number:06d}")
            for grade, count in enumerate(counts)
            for number in range(count)
        ]
    assert release_differences(splits) == []
    assert len(release_differences({"train": splits["train"][:-1]})) == 1
    unlike = [Xray("train", 0, "x", Path("x"), None, "someone else")]
    assert release_differences({"train": unlike}) == []


def test_instructions_where_there_is_nothing(tmp_path):
    with pytest.raises(CorpusError, match=r"there is no such folder or file.*10\.17632.*CC BY 4\.0.*kneeKL224 folder"):
        resolve_data_dir(tmp_path / "KneeXrayData.zip")


def test_grading_finds_the_same_suffixes(tmp_path):
    for name in ("a.tif", "b.DCM", "c.bmp", "d.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [Path(file).name for file in find_xrays([tmp_path])] == ["a.tif", "b.DCM", "c.bmp"]


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
