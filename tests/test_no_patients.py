"""No real X-ray is in git but the ten examples of a public data set, which bear no person's number."""

import re
import subprocess

import pytest
from conftest import ROOT
from PIL import Image

from dataset_script.examples import GRADES, SIDES, ExampleError, choose, main
from dataset_script.synthetic import draw_knee

IMAGE = re.compile(r"\.(png|jpe?g|webp|tiff?|bmp|dcm|dicom|npy|npz|h5)$", re.I)
# Folders of pictures that are drawn, composed of drawings, or plots.
DRAWN = ("docs/figures/", "models/clip-koa-small/figures/", "tests/data/")
# The release shows the same ten.
COPIES = "models/clip-koa-small/"


def test_every_image_in_git_is_a_drawing_or_one_of_the_ten_examples():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = listed.stdout.splitlines()
    real = [file for file in files if IMAGE.search(file) and not file.startswith(DRAWN)]
    examples = sorted(f"examples/kl{grade}_{side}.png" for grade in GRADES for side in SIDES.values())
    assert real == [*examples, *(f"{COPIES}{file}" for file in examples)]
    for file in examples:
        assert (ROOT / COPIES / file).read_bytes() == (ROOT / file).read_bytes()
        with Image.open(ROOT / file) as image:
            assert image.mode == "L" and image.size == (224, 224) and image.info == {}
    assert [file for file in files if re.search(r"(?<!\d)9\d{6}[LR]?(_\d)?\.\w+$", file)] == []  # a person's number
    assert "CC BY 4.0" in (ROOT / "examples/ATTRIBUTION.md").read_text()


@pytest.fixture
def data_set(tmp_path):
    """A data set of drawings, two people a grade in the validation split."""
    for split in ("train", "val"):
        for grade in GRADES:
            (tmp_path / split / str(grade)).mkdir(parents=True)
            for person in range(2):
                for side in SIDES:
                    number = 9000000 + 100 * grade + person + (50 if split == "val" else 0)
                    draw_knee(grade, side, number, 48).convert("RGB").save(
                        tmp_path / split / str(grade) / f"{number}{side}.png"
                    )
    return tmp_path


def test_the_examples_are_two_of_each_grade_without_a_number(data_set, tmp_path):
    output = tmp_path / "examples"
    assert main(["--data_dir", str(data_set), "--output", str(output)]) == 0
    names = [f"kl{grade}_{side}.png" for grade in GRADES for side in SIDES.values()]
    assert sorted(path.name for path in output.iterdir()) == sorted(names)
    contents = [path.read_bytes() for path in sorted(output.iterdir())]
    for path in output.iterdir():
        image = Image.open(path)
        assert image.mode == "L" and image.info == {} and b"9000" not in path.read_bytes()
    assert main(["--data_dir", str(data_set), "--output", str(output)]) == 0  # and the same again
    assert [path.read_bytes() for path in sorted(output.iterdir())] == contents


def test_the_rule_does_not_depend_on_where_the_x_rays_lie(data_set):
    from dataset_script.layouts import find_files

    xrays = find_files(data_set)["validation"]
    chosen = {name: xray.file for name, xray in choose(xrays)}
    assert {name: xray.file for name, xray in choose(xrays[::-1])} == chosen
    assert len({xray.person_id for _, xray in choose(xrays)}) == 10  # a person gives one
    with pytest.raises(ExampleError, match="no left knee of grade 3"):
        dict(choose([xray for xray in xrays if xray.grade != 3]))


def test_a_data_set_that_lacks_a_grade_is_refused(tmp_path, capsys):
    assert main(["--data_dir", str(tmp_path / "nowhere")]) == 2
    assert "there is no such folder" in capsys.readouterr().err
