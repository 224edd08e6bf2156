"""A loaded model grades: wherever its folder went, copied, in half precision, in training, without this project."""

import copy
import json
import pickle
import shutil

import pytest
import torch

from clip_koa.training.checkpoints import save_model_folder
from dataset_script.synthetic import draw_knee
from modeling_clip_koa import CALIBRATION_FILE, TYPICALITY_FILE, CalibrationError, CLIPKOAForImageClassification
from modeling_clip_koa.calibration_clip_koa import Typicality, typicality_file

XRAYS = [draw_knee(grade, "L", grade, 100) for grade in (0, 4)]
ALONE = """
import json, shutil, sys
from PIL import Image
from transformers import AutoModel, AutoModelForImageClassification
folder, xray, found = sys.argv[1], Image.open(sys.argv[2]), []
for auto in (AutoModel, AutoModelForImageClassification):
    model = auto.from_pretrained(folder, trust_remote_code=True)
    model.save_pretrained("copy")
    again = auto.from_pretrained("copy", trust_remote_code=True)
    shutil.rmtree("copy")
    grades = [one.grade(xray) for one in (model, again)]
    found += [[grade.name, grade.probabilities, grade.confidence_set, grade.atypicality] for grade in grades]
    hot = again.explain(xray, grade=3, against=2)
    assert hot.overlay().size == xray.size and hot.heat_map.max() == 1
assert not any(name.split(".")[0] in ("clip_koa", "modeling_clip_koa", "dataset_script") for name in sys.modules)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folder(tiny_start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    typicality = Typicality(1, torch.zeros(128), torch.eye(128), torch.linspace(0, 200, 1000))
    files = {CALIBRATION_FILE: b'{"thresholds": {"0.90": 0.6}}', TYPICALITY_FILE: typicality_file(typicality)}
    save_model_folder(folder, tiny_start.model, tiny_start.image_processor, tiny_start.tokenizer, files)
    return folder


@pytest.fixture
def model(folder):
    return CLIPKOAForImageClassification.from_pretrained(folder)


def test_nothing_of_this_repository_is_needed(folder, model, run_python, tmp_path):
    XRAYS[1].save(tmp_path / "knee.png")
    (tmp_path / "alone.py").write_text(ALONE)
    result = run_python(
        "-I", tmp_path / "alone.py", folder, tmp_path / "knee.png", cwd=tmp_path, HF_HOME=tmp_path / "hf"
    )
    grade = model.grade(XRAYS[1])
    expected = json.loads(json.dumps([grade.name, grade.probabilities, grade.confidence_set, grade.atypicality]))
    assert json.loads(result.stdout.splitlines()[-1]) == [expected] * 4
    assert grade.confidence_set and grade.atypicality is not None


def test_the_folder_may_go_and_copies_grade(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "gone")
    model = CLIPKOAForImageClassification.from_pretrained(tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone")
    grades = model.grade(XRAYS)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.grade(XRAYS) == grades
    model.save_pretrained(tmp_path / "saved")
    assert CLIPKOAForImageClassification.from_pretrained(tmp_path / "saved").grade(XRAYS) == grades


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_precisions_grade(model, dtype):
    expected = model.grade(XRAYS)
    for found, grade in zip(model.to(dtype).grade(XRAYS), expected, strict=True):
        assert found.probabilities == pytest.approx(grade.probabilities, abs=0.05)
        assert found.atypicality == pytest.approx(grade.atypicality, abs=0.1)
    assert torch.isfinite(model.explain(XRAYS[0]).heat_map).all()


def test_it_is_graded_as_in_evaluation(folder, model, tmp_path):
    expected = [grade.probabilities for grade in model.grade(XRAYS)]
    for tower in (model.vision_model, model.text_model):
        for layer in tower.encoder.layers:
            layer.self_attn.dropout = 0.9
    model.train()
    assert [grade.probabilities for grade in model.grade(XRAYS)] == expected
    assert model.training and all(module.training for module in model.modules())


def test_training_leaves_the_calibration_behind(folder, model, tmp_path):
    """It holds for the weights that it was fitted on."""
    assert model.grade(XRAYS[0]).confidence_set
    model.train().eval()
    grade = model.grade(XRAYS[0])
    assert grade.confidence_set == () and grade.atypicality is None
    model.save_pretrained(tmp_path / "trained")
    assert not (tmp_path / "trained" / CALIBRATION_FILE).exists()
    assert not (tmp_path / "trained" / TYPICALITY_FILE).exists()
    assert CLIPKOAForImageClassification.from_pretrained(tmp_path / "trained").grade(XRAYS[0]) == grade


def test_what_is_missing_is_named_when_it_is_asked_for(folder, model, make_model, tmp_path):
    shutil.copytree(folder, tmp_path / "bare")
    (tmp_path / "bare" / "preprocessor_config.json").unlink()
    bare = CLIPKOAForImageClassification.from_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"bare holds no preprocessor_config\.json: .* or set model\.image_processor"):
        bare.grade(XRAYS[0])
    bare.image_processor = model.image_processor
    assert bare.grade(XRAYS[0]) == model.grade(XRAYS[0])
    with pytest.raises(ValueError, match="came without an image processor"):
        make_model().grade(XRAYS[0])
    (tmp_path / "bare" / CALIBRATION_FILE).write_text("{")
    damaged = CLIPKOAForImageClassification.from_pretrained(tmp_path / "bare")
    damaged.image_processor = model.image_processor
    with pytest.raises(CalibrationError, match="run clip-koa calibrate anew"):
        damaged.grade(XRAYS[0])
    with pytest.raises(CalibrationError, match="level 0.3: use one of 0.50"):
        model.grade(XRAYS[0], level=0.3)


def test_other_labels_than_the_grades_are_not_graded(folder, model):
    prompts = [["low"], ["middle"], ["high"]]
    three = CLIPKOAForImageClassification.from_pretrained(folder, num_labels=3, prompts=prompts)
    with pytest.raises(ValueError, match="3 labels: grade gives KL grades 0 to 4"):
        three.grade(XRAYS[0])


def test_a_tower_of_one_block_grades(make_model, model, pixel_values):
    """Its one block is the watched one, too."""
    one = make_model().eval()
    del one.vision_model.encoder.layers[1:]
    logits, flipped_logits, features = one.grade_pixels(pixel_values)
    with torch.no_grad():
        output = one(pixel_values)
    torch.testing.assert_close((logits + flipped_logits) / 2, output.logits, rtol=1e-5, atol=1e-5)
    assert features.shape == (6, 32)
