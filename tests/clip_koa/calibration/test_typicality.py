"""Images unlike the training X-rays are told, from calibration to every grade."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file

from clip_koa.calibration.typicality import fit_typicality
from clip_koa.training.checkpoints import save_model_folder
from dataset_script.synthetic import draw_knee, write_corpus
from modeling_clip_koa import TYPICALITY_FILE, CalibrationError, CLIPKOAGrader
from modeling_clip_koa.calibration_clip_koa import read_typicality


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
def calibrated(model, corpus, tmp_path, run_python):
    run_python(
        "-m", "clip_koa", "calibrate", "--model", model, "--data_dir", corpus, "--output", tmp_path / "calibrated"
    )
    return tmp_path / "calibrated"


def test_noise_is_warned_of_and_knees_are_not(calibrated, corpus, tmp_path, run_python):
    tensors = load_file(calibrated / TYPICALITY_FILE)
    width = tensors["mean"].shape[0]
    assert tensors["precision"].shape == (width, width) and len(tensors["distances"]) == 30
    noise = np.random.default_rng(0).integers(0, 255, (48, 48), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    draw_knee(2, "L", 12345, 48).save(tmp_path / "knee.png")
    command = ("predict.py", "--model", calibrated, tmp_path / "noise.png", tmp_path / "knee.png")
    run_python(*command, "--output", tmp_path / "a.csv")
    noisy, knee = csv.DictReader((tmp_path / "a.csv").open())
    assert float(noisy["atypicality"]) == 1.0 and noisy["warning"].startswith("Unlike the knee X-rays")
    assert float(knee["atypicality"]) < 0.99 and not knee["warning"]
    assert run_python(*command).stdout.count("Unlike the knee X-rays") == 1

    grader = CLIPKOAGrader.from_pretrained(str(calibrated))
    xray = draw_knee(3, "L", 5, 48)
    pair = grader.grade([xray, ImageOps.mirror(xray)])
    assert pair[0].atypicality == pytest.approx(pair[1].atypicality, abs=1e-3)

    checked = run_python(
        "-m",
        "studies.typicality_check",
        "--model",
        calibrated,
        "--data_dir",
        corpus,
        "--changed",
        4,
        "--json",
    )
    kinds = json.loads(checked.stdout[checked.stdout.index("{") :])["kinds"]
    assert kinds["noise"]["auroc"] == 1.0 and kinds["upside down"]["images"] == 4

    (calibrated / TYPICALITY_FILE).write_bytes(b"damaged")
    with pytest.raises(CalibrationError, match="is damaged"):
        read_typicality(str(calibrated))


def test_without_training_xrays_nothing_is_said(model, corpus, tmp_path, run_python):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "validation").symlink_to(corpus / "validation")
    command = (
        "-m",
        "clip_koa",
        "calibrate",
        "--model",
        model,
        "--data_dir",
        tmp_path / "corpus",
        "--output",
        tmp_path / "calibrated",
    )
    assert "no training X-rays were given" in run_python(*command).stdout
    assert not (tmp_path / "calibrated" / TYPICALITY_FILE).exists()
    assert CLIPKOAGrader.from_pretrained(str(tmp_path / "calibrated")).grade(draw_knee(0, "L", 0)).atypicality is None
    check = ("-m", "studies.typicality_check", "--model", tmp_path / "calibrated", "--data_dir", corpus)
    assert "calibrate it with them first" in run_python(*check, expect=2).stderr
