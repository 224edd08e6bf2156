"""The corpus builder in the hands of users: odd names and places, many processes, every way out of the cache.

`test_corpus.py` holds the plain cases: features, splits, refusals and the cache.
"""

import os
import re
import subprocess
import sys
from collections import Counter

import datasets
import numpy as np
import pytest
from conftest import ROOT
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from clip_koa import RELEASED_MODEL
from clip_koa.grading.grader import Grader
from dataset_script.knee_xray import CorpusError, KneeXray, find_files, load_knee_xray, map_ahead, resolve_data_dir
from dataset_script.radiograph import read_radiograph, read_stored_image
from dataset_script.synthetic import draw_knee, write_corpus


@pytest.fixture
def knees(tmp_path):
    """A generated test split in the release's layout: two people, both knees."""
    write_corpus(tmp_path / "knees", people=2, seed=1, image_size=40, overlap=0, split="test")
    return tmp_path / "knees"


@pytest.fixture
def cache(tmp_path):
    return str(tmp_path / "cache")


def _add(folder, name, grade=0):
    path = folder / str(grade) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_knee(grade, "L", 2, image_size=40).save(path, "PNG")
    return path


def test_a_relative_folder_is_read_from_anywhere_later(knees, cache, monkeypatch):
    monkeypatch.chdir(knees.parent)
    corpus = load_knee_xray("knees", cache_dir=cache)
    monkeypatch.chdir("/")
    assert corpus["test"][0]["image"].size == (40, 40)


def test_two_folders_of_one_name_do_not_share_a_cache(knees, cache, tmp_path, monkeypatch):
    """Same names, sizes and times, other place: the examples must come from the folder that was named."""
    write_corpus(tmp_path / "elsewhere/knees", people=2, seed=1, image_size=40, overlap=0, split="test")
    for first, second in zip(sorted(knees.rglob("*.png")), sorted(tmp_path.glob("elsewhere/**/*.png")), strict=True):
        os.utime(first, ns=(1, 1))
        os.utime(second, ns=(1, 1))
    paths = []
    for place in (tmp_path, tmp_path / "elsewhere"):
        monkeypatch.chdir(place)
        rows = load_knee_xray("knees", cache_dir=cache)["test"].cast_column("image", datasets.Image(decode=False))
        paths.append(rows[0]["image"]["path"])
    assert paths[0] != paths[1] and "elsewhere" in paths[1]


def test_a_file_touched_without_a_change_of_size_is_noticed(knees, cache):
    path = next(knees.rglob("*.png"))
    before = KneeXray("folder", data_dir=knees, cache_dir=cache).manifest_digest
    assert KneeXray("folder", data_dir=knees, cache_dir=cache).manifest_digest == before
    os.utime(path, ns=(1, 1))
    assert KneeXray("folder", data_dir=knees, cache_dir=cache).manifest_digest != before


def test_a_moved_file_changes_its_label(knees, cache):
    path = _add(knees / "test", "9000009L.png", grade=0)
    assert _labels(knees, cache)["test/0/9000009L.png"] == 0
    (knees / "test" / "4").mkdir(exist_ok=True)
    path.rename(knees / "test" / "4" / path.name)
    assert _labels(knees, cache)["test/4/9000009L.png"] == 4


def _labels(folder, cache) -> dict:
    rows = load_knee_xray(folder, cache_dir=cache)["test"]
    return dict(zip(rows["file"], rows["label"], strict=True))


def test_two_processes_at_once(knees, cache):
    """As the ranks of a training run do that all load the corpus."""
    code = (
        "import sys; from dataset_script.knee_xray import load_knee_xray;"
        "print(len(load_knee_xray(sys.argv[1], cache_dir=sys.argv[2])['test']))"
    )
    command = [sys.executable, "-c", code, str(knees), cache]
    ranks = [
        subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    outputs = [rank.communicate(timeout=120) for rank in ranks]
    assert [output.strip() for output, _ in outputs] == ["4", "4"], outputs


def test_parquet_carries_the_pixels_not_the_paths(knees, cache, tmp_path):
    builder = KneeXray("folder", data_dir=knees, cache_dir=cache)
    builder.download_and_prepare(str(tmp_path / "parquet"), file_format="parquet")
    expected = [row["image"].convert("L").tobytes() for row in builder_rows(knees, cache)]
    knees.rename(tmp_path / "gone")
    files = {"test": str(tmp_path / "parquet" / "*test*.parquet")}
    rows = datasets.load_dataset("parquet", data_files=files, cache_dir=cache)["test"]
    assert [row["image"].convert("L").tobytes() for row in rows] == expected
    assert rows.features["label"].names[4] == "KL4 severe"


def builder_rows(folder, cache):
    return load_knee_xray(folder, cache_dir=cache)["test"]


def test_several_workers_and_streaming_give_the_same_rows(knees, tmp_path):
    """The two other ways that `datasets` runs a builder."""
    expected = load_knee_xray(knees, cache_dir=str(tmp_path / "one"))["test"]["file"][:]
    builder = KneeXray("folder", data_dir=knees, cache_dir=str(tmp_path / "two"))
    builder.download_and_prepare(num_proc=2)
    assert sorted(builder.as_dataset()["test"]["file"]) == sorted(expected)
    streamed = KneeXray("folder", data_dir=knees, cache_dir=str(tmp_path / "three")).as_streaming_dataset()
    assert [row["file"] for row in streamed["test"]] == list(expected)


def test_the_refusal_is_the_last_word(knees, run_python, cache):
    """What a user sees at the end of the traceback is the file, not `datasets`' own wrapping."""
    broken = _add(knees / "test", "9000009L.png")
    broken.write_bytes(broken.read_bytes()[:200])
    code = (
        "import sys; from dataset_script.knee_xray import load_knee_xray; load_knee_xray(sys.argv[1], cache_dir='c')"
    )
    environment = {"PYTHONPATH": str(ROOT)}
    result = run_python("-c", code, knees, expect=1, cwd=knees.parent, **environment)
    assert result.stderr.strip().splitlines()[-1].startswith("dataset_script.names.CorpusError: ")
    assert "9000009L.png" in result.stderr.strip().splitlines()[-1]
    assert "DatasetGenerationError" not in result.stderr


def test_two_folders_for_one_split_are_refused(knees):
    for name in ("val", "valid"):
        _add(knees / name, "9000009L.png")
    with pytest.raises(CorpusError, match="valid.* both name the validation split"):
        find_files(knees)


def test_an_xray_without_a_grade_is_refused(knees):
    (knees / "test" / "9000009L.PNG").write_bytes(b"")
    with pytest.raises(CorpusError, match=r"9000009L\.PNG has no grade"):
        find_files(knees)


def test_a_folder_named_like_an_xray_is_a_folder(knees, cache):
    _add(knees / "test" / "0" / "x.png", "9000009L.png")
    assert "test/0/x.png/0/9000009L.png" in _labels(knees, cache)


def test_the_refusal_of_another_process_is_the_last_word_too(knees, cache):
    broken = _add(knees / "test", "9000009L.png")
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(CorpusError, match=r"9000009L\.png is damaged"):
        KneeXray("folder", data_dir=knees, cache_dir=cache).download_and_prepare(num_proc=2)


def test_a_name_that_is_not_utf8_is_refused(knees):
    try:
        with open(os.fsencode(knees / "test" / "0") + b"/caf\xe9.png", "wb"):
            pass
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(CorpusError, match=r"caf\\xe9\.png.*not UTF-8"):
        find_files(knees)


def test_auto_test_may_hold_the_test_people_but_train_may_not(knees):
    person = next(path.stem[:7] for path in knees.rglob("*.png"))
    _add(knees / "auto_test", f"{person}_1.png")
    assert set(find_files(knees)) == {"test", "auto_test"}
    _add(knees / "train", f"{person}L.png")
    with pytest.raises(CorpusError, match=f"Person {person} is in two splits"):
        find_files(knees)


def test_a_wrong_variable_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("KNEE_XRAY_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(CorpusError, match=r"nowhere \(from KNEE_XRAY_DIR\): there is no such folder"):
        resolve_data_dir(None)


# Anything a file system takes as a name, apart from the path separator and hidden files.
_stems = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stem=_stems.filter(lambda stem: not stem.startswith((".", "__MACOSX"))))
@example(stem="name with spaces\nand a line break")
@example(stem="90000012345678")  # a longer number is no person's seven digits
@example(stem="٩٠٠٠٠٠١")  # digits, but not ours
@example(stem="ĳ漢字🦵%20{0}")
def test_odd_names_are_read(stem, tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    _add(folder / "test", f"{stem}.Png")
    [row] = load_knee_xray(folder, cache_dir=str(folder / "cache"))["test"]
    assert row["file"] == f"test/0/{stem}.Png" and row["image"].size == (40, 40)
    assert row["laterality"] in ("L", "R", "") and (row["person_id"] == "" or row["person_id"] == stem[:7])


def test_long_numbers_are_not_the_same_person(knees):
    _add(knees / "train", "12345678.png")
    _add(knees / "val", "12345679.png")
    assert set(find_files(knees)) == {"train", "validation", "test"}


@pytest.mark.slow
@pytest.mark.real
def test_the_real_corpus_side_by_side(knee_xray_dir, cache):
    """Both knees of every person, the splits of the official release, all read within seconds."""
    corpus = load_knee_xray(knee_xray_dir, cache_dir=cache)
    assert (len(corpus["train"]), len(corpus["validation"])) == (5778, 826)
    for split, people in (("train", 2889), ("validation", 413)):
        assert Counter(corpus[split]["laterality"]) == {"L": people, "R": people}
        assert set(Counter(corpus[split]["person_id"]).values()) == {2}


def test_reading_ahead_is_bounded_and_in_order():
    """However many X-rays there are, few are in memory at a time."""
    given, most_ahead = [], 0

    def items():
        for number in range(1, 1001):
            given.append(number)
            yield number

    for taken, item in enumerate(map_ahead(lambda item: item, items()), 1):
        assert item == taken
        most_ahead = max(most_ahead, len(given) - taken)
    assert taken == 1000 and most_ahead < 40


def test_the_benchmark_measures(run_python):
    arguments = ("-m", "dataset_script.benchmark", "--count", 20, "--stream", 300)
    lines = run_python(*arguments).stdout.splitlines()
    assert lines[0].startswith("reading 20 PNG files") and lines[1].startswith("streaming 300 X-rays")
    assert run_python(*arguments, "--data", "nowhere", expect=2).stderr.startswith("dataset_script.benchmark: nowhere")


@pytest.mark.slow
@pytest.mark.real
def test_the_benchmark_builds_the_real_corpus_in_flat_memory(knee_xray_dir, run_python):
    arguments = ("-m", "dataset_script.benchmark", "--count", 20, "--stream", 0, "--data", knee_xray_dir)
    before = os.times()
    line = run_python(*arguments).stdout.splitlines()[1]
    after = os.times()
    growth = re.search(r"6604 X-rays: [0-9.]+ s.* half ([-+][0-9.]+) MB", line).group(1)
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    # A minute of two cores, whatever else they do.
    assert seconds < 2 * 60 and float(growth) < 30


README_LOOP = re.compile(r"```python\n(import evaluate\n.*?)```", re.S)


def _awkward_files(folder) -> None:
    """One graded knee in every way that needs more than decoding, and some that do not."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for grade in range(5):
        place = folder / "val" / str(grade)
        place.mkdir(parents=True)
        knee = draw_knee(grade, "L", grade, image_size=64)
        deep = Image.fromarray(np.asarray(knee, np.uint16) * 40 + 3000)
        clear = knee.convert("LA")
        clear.putalpha(Image.new("L", knee.size, 128))
        deep.save(place / f"900000{grade}L.png")
        ImageOps.invert(knee).save(place / f"900001{grade}L.png")
        knee.transpose(Image.Transpose.ROTATE_90).save(place / f"900002{grade}L.jpg", exif=exif, quality=95)
        clear.save(place / f"900003{grade}L.png")
        knee.convert("RGB").convert("CMYK").save(place / f"900004{grade}L.tif")
        knee.save(place / f"900005{grade}L.png")
        knee.convert("RGB").save(place / f"900006{grade}L.png")
        knee.save(place / f"900007{grade}L.jpg", quality=95)


def test_images_are_the_pictures_that_training_sees(tmp_path, cache):
    """Whatever `datasets` decodes: what `read_radiograph` makes of the file. Plain files stay files."""
    _awkward_files(tmp_path / "knees")
    rows = load_knee_xray(tmp_path / "knees", cache_dir=cache)["validation"]
    stored = rows.cast_column("image", datasets.Image(decode=False))
    assert len(rows) == 40
    for row, cell in zip(rows, stored["image"], strict=True):
        picture = read_radiograph(tmp_path / "knees" / row["file"]).image
        assert row["image"].convert("RGB").tobytes() == picture.convert("RGB").tobytes(), row["file"]
        assert read_stored_image(cell).tobytes() == picture.tobytes()
        kept = row["file"].split("/")[-1][5] in "2567"
        assert (cell["path"] is not None) is kept and (cell["bytes"] is None) is kept, row["file"]


def test_the_loop_of_the_readme_gives_the_grades_of_the_files(tmp_path, monkeypatch, cache):
    _awkward_files(tmp_path / "FOLDER")
    for file in (tmp_path / "FOLDER").rglob("*.*"):  # one grade in each way is enough, and quicker
        if int(file.stem[5]) % 5 != int(file.stem[6]):
            file.unlink()
    [code] = README_LOOP.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    for name in ("models/clip-koa-small", "metrics/kl_grading"):
        code = code.replace(f'"{name}"', f'"{ROOT / name}"')
    code = code.replace('load_knee_xray("FOLDER")', f'load_knee_xray("FOLDER", cache_dir="{cache}")')
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(compile(code, "README.md", "exec"), found)
    files = [tmp_path / "FOLDER" / file for file in found["xrays"]["file"]]
    assert found["grades"] == [xray.grade.grade for xray in Grader(str(RELEASED_MODEL)).grade(files)]
    assert len(set(found["grades"])) > 1
