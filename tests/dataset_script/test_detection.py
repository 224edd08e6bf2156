"""DetKneeData: films in the form that deepdish writes, out of folders and archives, and all that is none."""

import io
import shutil
import sys
import zipfile

import numpy as np
import pytest
from deepdish_files import deepdish_file

from dataset_script.detection import read_detection_films, read_file
from dataset_script.names import CorpusError

h5py = pytest.importorskip("h5py")
FILM = np.random.default_rng(0).integers(0, 255, (256, 320)).astype(np.uint8)
BOXES = np.array([[40, 80, 130, 170], [190, 82, 280, 172]])
SAMPLE = {"images": FILM, "gt_boxes": BOXES, "gt_classes": np.array([2, 3]), "origin_im": "9000001", "dontcare": []}


def _same(film, image=FILM, person="9000001") -> bool:
    assert film.image.mode == "L" and np.array_equal(np.asarray(film.image), image)
    return film.boxes == tuple(map(tuple, BOXES.tolist())) and film.person == person


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"images": FILM.astype(np.float64)},
        {"images": FILM[None].astype(np.int64), "gt_boxes": BOXES[None].astype(np.float32)},
        {"images": np.repeat(FILM[..., None], 3, 2)},
        {"images": np.repeat(FILM[None], 3, 0)},
        {"images": [FILM], "gt_boxes": [BOXES], "gt_classes": [[0, 1]], "origin_im": ["9000001"]},
        {"gt_boxes": BOXES.tolist(), "origin_im": 9000001},
        {"images": FILM.astype(np.float32) / 255},
    ],
)
def test_every_form_a_film_may_have(changes):
    (film,) = read_file(deepdish_file(SAMPLE | changes), "x.h5")
    assert _same(film)


def test_several_films_and_deep_ones():
    two = {"images": np.stack([FILM, FILM[:, ::-1]]), "gt_boxes": [BOXES, BOXES], "origin_im": ["9000001", "9000002"]}
    films = read_file(deepdish_file(two), "x.h5")
    assert _same(films[0]) and _same(films[1], FILM[:, ::-1], "9000002")
    (deep,) = read_file(deepdish_file(SAMPLE | {"images": FILM.astype(np.float32) - 128}), "x.h5")
    values = np.asarray(deep.image)
    assert values.min() == 0 and values.max() == 255 and values[FILM == 128].std() == 0
    del two["origin_im"]
    assert [film.person for film in read_file(deepdish_file(two), "x.h5")] == ["", ""]


@pytest.fixture
def folder(tmp_path):
    """DetKneeData with two training films, one of validation and three of test."""
    for split, count in (("train", 2), ("val", 1), ("test", 3)):
        place = tmp_path / "DetKneeData" / "H5" / f"{split}H5"
        place.mkdir(parents=True)
        for number in range(count):
            (place / f"{9000001 + number}.h5").write_bytes(
                deepdish_file(SAMPLE | {"origin_im": str(9000001 + number)})
            )
    return tmp_path / "DetKneeData"


def test_a_folder_and_the_archive_are_read_alike(folder, tmp_path):
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("KneeXrayData/readme.txt", "Knees.")
        for path in sorted(folder.rglob("*.h5"), reverse=True):
            opened.write(path, f"KneeXrayData/{path.relative_to(tmp_path)}")
    for split, count in (("train", 2), ("validation", 1), ("test", 3)):
        for place in (tmp_path, folder, folder / "H5", archive):
            films = list(read_detection_films(place, split))
            assert [film.person for film in films] == [str(9000001 + number) for number in range(count)]
            assert all(_same(film, person=film.person) for film in films)
    assert films[0].name == f"{archive}/KneeXrayData/DetKneeData/H5/testH5/9000001.h5"


@pytest.mark.parametrize(
    "content, told",
    [
        (b"no HDF5", "is damaged, or no film"),
        (deepdish_file(SAMPLE)[:1500], "is damaged, or no film"),
        (deepdish_file({"gt_boxes": BOXES}), "holds no images"),
        (deepdish_file({"images": FILM}), "holds no gt_boxes"),
        (deepdish_file(SAMPLE | {"images": FILM[0]}), "has images of shape"),
        (deepdish_file(SAMPLE | {"gt_boxes": BOXES[:1]}), "is damaged, or no film"),
        (deepdish_file(SAMPLE | {"gt_boxes": BOXES + 200}), "do not lie in its 320x256 pixels"),
        (deepdish_file(SAMPLE | {"gt_boxes": BOXES[:, ::-1]}), "do not lie in its 320x256 pixels"),
        (deepdish_file(SAMPLE | {"gt_boxes": BOXES * np.nan}), "do not lie in its 320x256 pixels"),
        (deepdish_file(SAMPLE | {"images": {"a": FILM}}), "neither an array nor a list"),
        (deepdish_file(SAMPLE | {"images": np.array([b"text"])}), "of the type"),
    ],
)
def test_what_is_no_film_is_told_in_a_line(content, told):
    with pytest.raises(CorpusError, match=told) as refused:
        read_file(content, "films/x.h5")
    assert str(refused.value).startswith("films/x.h5 ") and "\n" not in str(refused.value)


def test_no_other_file_is_opened(tmp_path):
    (tmp_path / "other.h5").write_bytes(deepdish_file(SAMPLE))
    content = io.BytesIO(deepdish_file({"gt_boxes": BOXES}))
    with h5py.File(content, "r+") as file:
        file["images"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/images")
    with pytest.raises(CorpusError, match="holds no images"):
        read_file(content.getvalue(), "x.h5")


def test_a_huge_array_is_not_read(tmp_path):
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.create_dataset("images", (100_000, 100_000), np.uint8, chunks=(1000, 1000), compression=9)
        file["gt_boxes"] = BOXES
    with pytest.raises(CorpusError, match="has images of 10,000,000,000 values"):
        read_file(content.getvalue(), "x.h5")


def test_wrong_places_are_told(folder, tmp_path, monkeypatch):
    with pytest.raises(CorpusError, match="name the .zip archive or the unpacked folder"):
        list(read_detection_films(tmp_path / "nowhere", "train"))
    with pytest.raises(CorpusError, match="The split auto_test: DetKneeData has train, validation, test"):
        list(read_detection_films(folder, "auto_test"))
    shutil.rmtree(folder / "H5" / "valH5")
    with pytest.raises(CorpusError, match="holds no valH5/"):
        list(read_detection_films(folder, "validation"))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(CorpusError, match=r"needs the extra `detection`: pip install 'clip-koa\[detection\]'"):
        list(read_detection_films(folder, "train"))
