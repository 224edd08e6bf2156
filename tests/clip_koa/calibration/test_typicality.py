"""Images unlike the training X-rays are told, from calibration to every grade."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file

from clip_koa.calibration.typicality import fit_typicality
from clip_koa.calibration.variations import SMALLEST_SIDE, vary
from clip_koa.training.checkpoints import save_model_folder
from dataset_script.synthetic import draw_knee, write_corpus
from modeling_clip_koa import CALIBRATION_FILE, TYPICALITY_FILE, WAYS, CalibrationError, CLIPKOAGrader
from modeling_clip_koa.calibration_clip_koa import read_typicality, typicality_file


def _numbers(count, seed):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)) @ torch.diag(torch.arange(1.0, 7.0))


def test_shares_are_those_of_the_unseen():
    typicality = fit_typicality(0, _numbers(4000, 0), _numbers(2000, 1))
    shares = np.array(typicality.shares(_numbers(2000, 2)))
    for bound in (0.5, 0.9, 0.99):
        assert (shares >= bound).mean() == pytest.approx(1 - bound, abs=0.03)
    assert typicality.shares(torch.full((1, 6), 50.0)) == [1.0]
    assert typicality.shares(torch.zeros(1, 6))[0] < 0.01
    # Along the widest axis the same step is more typical than along the narrowest.
    steps = typicality.measure(torch.stack([torch.eye(6)[5], torch.eye(6)[0]]) * 4)
    assert steps[0] < steps[1]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for split, people in (("train", 40), ("validation", 15)):
        write_corpus(folder / split / "made", people, 3, 48, 0.3, split)
        (folder / split / "made" / split).rename(folder / f"{split}-moved")
        (folder / split / "made").rmdir()
        (folder / split).rmdir()
        (folder / f"{split}-moved").rename(folder / split)
    return folder


@pytest.fixture(scope="module")
def model(tiny_start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    save_model_folder(folder, tiny_start.model, tiny_start.image_processor, tiny_start.tokenizer)
    return folder


@pytest.fixture
def calibrated(model, corpus, tmp_path, run_command):
    run_command("calibrate", "--model", model, "--data_dir", corpus, "--output", tmp_path / "calibrated")
    return tmp_path / "calibrated"


def test_noise_has_no_grade_and_knees_have_one(calibrated, corpus, tmp_path, run_command, run_python):
    tensors = load_file(calibrated / TYPICALITY_FILE)
    width = tensors["mean"].shape[0]
    assert tensors["precision"].shape == (width, width) and len(tensors["distances"]) == 30
    assert tensors["bounds"].shape == (len(WAYS), 2)
    noise = np.random.default_rng(0).integers(0, 255, (48, 48), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    knees = [draw_knee(2, "L", 12345, 48), draw_knee(3, "L", 5, 48)]
    knees[0].save(tmp_path / "knee.png")
    knees[0].resize((33, 33)).save(tmp_path / "small.png")
    command = ("grade", "--model", calibrated, *(tmp_path / f"{name}.png" for name in ("noise", "knee", "small")))
    run_command(*command, "--output", tmp_path / "a.csv", expect=1)
    noisy, knee, small = csv.DictReader((tmp_path / "a.csv").open())
    assert float(noisy["atypicality"]) == 1.0 and not noisy["grade"] and not noisy["probability_0"]
    assert "noise.png: This is no frontal knee X-ray" in noisy["error"] and not noisy["warning"]
    assert float(knee["atypicality"]) < 0.99 and knee["grade"] and not knee["warning"] and not knee["ways"]
    assert "resolution" in small["ways"].split() and small["grade"] and "resolution" in small["warning"]
    printed = run_command(*command, expect=1).stdout
    assert printed.count("no frontal knee X-ray") == 1 and "not graded" in printed

    grader = CLIPKOAGrader.from_pretrained(str(calibrated))
    pair = grader.grade([knees[1], ImageOps.mirror(knees[1])])
    assert pair[0].atypicality == pytest.approx(pair[1].atypicality, abs=1e-3) and pair[0].ways == pair[1].ways
    assert grader.grade(Image.fromarray(noise)).refusal

    checked = run_python(
        "-m", "studies.typicality_check", "--model", calibrated, "--data_dir", corpus, "--knees", 6, "--changed", 4,
        "--json",
    )  # fmt: skip
    found = json.loads(checked.stdout[checked.stdout.index("{") :])
    assert found["others"]["noise"]["refused"] == 1.0 and found["others"]["upside down"]["images"] == 4
    assert found["knees"]["120 pixels"]["images"] == 6

    (calibrated / TYPICALITY_FILE).write_bytes(b"damaged")
    with pytest.raises(CalibrationError, match="is damaged"):
        read_typicality(str(calibrated))


def test_the_file_of_an_earlier_version_warns_and_does_not_refuse(calibrated):
    """It was fitted to X-rays as they are, so it takes another machine's knee for no knee."""
    tensors = load_file(calibrated / TYPICALITY_FILE)
    for name in ("bounds", "direction", "offset"):
        del tensors[name]
    save_file(tensors, calibrated / TYPICALITY_FILE, {"block": str(read_typicality(str(calibrated)).block)})
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48), dtype=np.uint8))
    grade = CLIPKOAGrader.from_pretrained(str(calibrated)).grade(noise)
    assert grade.atypicality == 1.0 and not grade.refusal and not grade.ways
    assert grade.warning == "Unlike the knee X-rays the model was trained on: the grade may mean nothing."
    before = (calibrated / TYPICALITY_FILE).read_bytes()
    assert typicality_file(read_typicality(str(calibrated))) == before  # and it stays one where it is copied


def test_weights_are_kept_and_what_lies_beside_them_is_fitted_anew(calibrated, corpus, run_command):
    def contents():
        return {file.name: file.read_bytes() for file in calibrated.iterdir() if file.is_file()}

    def changed(before, after):
        assert before.keys() == after.keys()
        return {name for name in before if before[name] != after[name]}

    first = contents()
    command = ("calibrate", "--model", calibrated, "--data_dir", corpus, "--keep_weights")
    assert "--output" in run_command(*command, "--output", calibrated.parent / "other", expect=2).stderr
    assert contents() == first
    kept = json.loads(first[CALIBRATION_FILE])
    stale = {**kept, "least_probabilities": {"0.90": [0.5] * 5}}
    (calibrated / CALIBRATION_FILE).write_text(json.dumps(stale))
    before = contents()
    assert "told as before" in run_command(*command, "--typical_xrays", 0).stdout
    sets = contents()
    assert changed(before, sets) == {CALIBRATION_FILE}
    again = json.loads(sets[CALIBRATION_FILE])
    for head in ("text", "linear"):
        for figure in ("temperature", "before", "after"):
            assert again["heads"][head][figure] == kept["heads"][head][figure]
    for level, least in kept["least_probabilities"].items():
        assert again["least_probabilities"][level] == pytest.approx(least, abs=1e-4)
    run_command(*command, "--typical_xrays", 20)
    after = contents()
    assert changed(sets, after) == {TYPICALITY_FILE}
    run_command(*command, "--typical_xrays", 20)
    assert contents() == after  # every draw is seeded
    (calibrated / CALIBRATION_FILE).unlink()
    assert "was never calibrated" in run_command(*command, expect=2).stderr


def test_variations_are_seeded_and_keep_a_knee_a_knee():
    knee = draw_knee(2, "L", 1, 150)
    varied = [vary(knee, 0, number, 5) for number in range(30)]
    assert len({picture.tobytes() for picture in varied}) > 25
    for number, picture in enumerate(varied):
        assert picture.mode == "L" and min(picture.size) >= SMALLEST_SIDE
        assert vary(knee, 0, number, 5).tobytes() == picture.tobytes() != vary(knee, 1, number, 5).tobytes() or (
            picture.tobytes() == knee.tobytes()
        )


def test_without_training_xrays_nothing_is_said(model, corpus, tmp_path, run_command, run_python):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "validation").symlink_to(corpus / "validation")
    command = (
        "calibrate",
        "--model",
        model,
        "--data_dir",
        tmp_path / "corpus",
        "--output",
        tmp_path / "calibrated",
    )
    assert "no training X-rays were given" in run_command(*command).stdout
    assert not (tmp_path / "calibrated" / TYPICALITY_FILE).exists()
    assert CLIPKOAGrader.from_pretrained(str(tmp_path / "calibrated")).grade(draw_knee(0, "L", 0)).atypicality is None
    check = ("-m", "studies.typicality_check", "--model", tmp_path / "calibrated", "--data_dir", corpus)
    assert "calibrate it with them first" in run_python(*check, expect=2).stderr
