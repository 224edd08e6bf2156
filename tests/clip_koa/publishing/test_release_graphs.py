"""The ONNX graphs of a published model: they grade as it does, load as the card says, and hold nothing else."""

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from clip_koa.commands import main
from clip_koa.grading.onnx_network import RELEASE_FILES, ExportedModel
from clip_koa.publishing.errors import ReleaseError
from clip_koa.publishing.release_check import check_folder
from clip_koa.training.checkpoints import save_model_folder
from dataset_script.synthetic import draw_knee
from modeling_clip_koa import CLIPKOAForImageClassification

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")

from clip_koa.exporting import release_graphs  # noqa: E402
from clip_koa.publishing.graph_check import check_graph  # noqa: E402

pytestmark = pytest.mark.slow  # exporting and loading in a fresh process take their time
NAME = "anna/knees"


@pytest.fixture(scope="module")
def release(tiny_start, tmp_path_factory):
    """A release of a tiny calibrated model, with its graphs, built and checked by the command."""
    place = tmp_path_factory.mktemp("published")
    files = {
        "calibration.json": b'{"split": "validation", "least_probabilities": {"0.90": [0.3, 0.1, 0.2, 0.15, 0.3]}, '
        b'"heads": {"text": {"level": 0.9, '
        b'"coverage": 0.9, "mean_set_size": 2, "before": {"expected_calibration_error": {"value": 0.1, "interval": '
        b'[0.1, 0.1]}}, "after": {"expected_calibration_error": {"value": 0.1, "interval": [0.1, 0.1]}}}}}'
    }
    save_model_folder(
        place / "run" / "best", tiny_start.model, tiny_start.image_processor, tiny_start.tokenizer, files
    )
    options = ["--onnx", "--dry_run", "--output", str(place / "release")]
    assert main(["publish", str(place / "run" / "best"), NAME, *options]) == 0
    return place / "release"


@pytest.fixture(scope="module")
def knee(tiny_start, tmp_path_factory):
    """An X-ray of the size that the model reads, since others shrink it by another filter."""
    path = tmp_path_factory.mktemp("knees") / "knee.png"
    draw_knee(3, "L", 4, tiny_start.model.config.vision_config.image_size).convert("RGB").save(path)
    return path


def test_each_graph_grades_as_the_model(release):
    model = CLIPKOAForImageClassification.from_pretrained(release).eval()
    pixel_values = torch.randn(
        3, 3, *[model.config.vision_config.image_size] * 2, generator=torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        expected = model(pixel_values, flip_average=True).logits.softmax(-1).numpy()
    sizes = {}
    for precision, file in RELEASE_FILES.items():
        session = ExportedModel(release, file).session
        [found] = session.run(["probabilities"], {"pixel_values": pixel_values.numpy()})
        assert np.abs(found - expected).max() < release_graphs.TOLERANCES[precision]
        sizes[precision] = (release / file).stat().st_size
    assert sizes["fp16"] < sizes["fp32"] and sizes["int8"] < sizes["fp32"]
    floats = {tensor.data_type for tensor in onnx.load(release / RELEASE_FILES["fp16"]).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in floats


def test_a_published_model_is_what_grade_takes(release, knee, capsys):
    """Its graph in full precision, without being exported again."""
    assert main(["grade", "--backend", "onnx", "--model", str(release), str(knee)]) == 0
    assert "KL" in capsys.readouterr().out


def _block(release: Path, language: str) -> str:
    """The card's code for ONNX in a language, on this folder in place of the Hub's name."""
    section = (release / "README.md").read_text().split("## ONNX", 1)[1].split("\n## ", 1)[0]
    return re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)[1].replace(f'"{NAME}"', repr(str(release)))


def test_the_cards_lines_of_onnxruntime_give_the_models_grade_and_set(release, knee, monkeypatch):
    monkeypatch.chdir(knee.parent)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda folder, file: Path(folder) / file)
    found = {}
    exec(_block(release, "python"), found)
    grade = CLIPKOAForImageClassification.from_pretrained(release).grade(Image.open(knee))
    assert found["probabilities"] == pytest.approx(grade.probabilities, abs=1e-3)
    assert tuple(range(min(found["likely"]), max(found["likely"]) + 1)) == grade.confidence_set


@pytest.mark.skipif(not os.environ.get("TRANSFORMERS_JS"), reason="TRANSFORMERS_JS names no folder of npm packages")
def test_the_cards_lines_of_transformers_js_give_the_models_grade(release, knee):
    """TRANSFORMERS_JS: a folder in which `npm install @huggingface/transformers@4.3.2` was run."""
    folder = Path(os.environ["TRANSFORMERS_JS"])
    code = _block(release, "js").replace(repr(str(release)), '"release"').replace('"knee.png"', repr(str(knee)))
    head, _, body = code.partition("\n\n")
    settings = f'env.allowRemoteModels = false;\nenv.localModelPath = "{release.parent}/";'
    head = head.replace("import { ", "import { env, ")
    for precision, dtype in (("fp32", "fp32"), ("fp16", "fp16"), ("int8", "q8")):
        script = "\n".join((head, settings, body.replace('"q8"', f'"{dtype}"')))
        result = subprocess.run(
            ["node", "--input-type=module", "--eval", script], cwd=folder, capture_output=True, text=True, timeout=120
        )
        assert result.returncode == 0, result.stderr
        shown = [float(number) for number in re.findall(r"\d\.\d+(?:e-\d+)?", result.stdout)]
        [ours] = ExportedModel(release, RELEASE_FILES[precision]).grade([Image.open(knee)])
        # Another build of ONNX Runtime may round 8-bit products otherwise.
        assert shown == pytest.approx(ours.probabilities, abs=0.03 if precision == "int8" else 1e-3)


def test_a_graph_that_carries_more_than_what_computes_is_refused(release):
    content = (release / RELEASE_FILES["fp32"]).read_bytes()
    check_graph("onnx/model.onnx", content)
    for change, reason in (
        (lambda model: model.metadata_props.add(key="by", value="anna"), "carries notes .*metadata_props"),
        (lambda model: setattr(model.graph.node[3], "doc_string", "made by anna"), "carries notes .*doc_string"),
        (lambda model: setattr(model.graph.node[3], "name", "/home/anna/model/3"), "a path of a machine"),
        (lambda model: model.graph.initializer[0].external_data.add(key="location", value="x"), "in another file"),
    ):
        model = onnx.load_model_from_string(content)
        change(model)
        with pytest.raises(ReleaseError, match=f"onnx/model.onnx .*{reason}"):
            check_graph("onnx/model.onnx", model.SerializeToString())
    with pytest.raises(ReleaseError, match="no part of its graph"):
        check_graph("onnx/model.onnx", content + b"\xfa\x3f\x04anna")  # a field that ONNX does not know
    with pytest.raises(ReleaseError, match="no whole ONNX graph"):
        check_graph("onnx/model.onnx", content[: len(content) // 2])


def test_a_graph_has_one_place_in_a_release(release, tmp_path):
    (tmp_path / "model.onnx").write_bytes((release / RELEASE_FILES["int8"]).read_bytes())
    with pytest.raises(ReleaseError, match="model.onnx has no place in a release"):
        check_folder(tmp_path)


def test_a_broken_graph_is_not_published(release, tmp_path, monkeypatch):
    monkeypatch.setattr(release_graphs, "compare", lambda *_: 0.3)
    model = CLIPKOAForImageClassification.from_pretrained(release).eval()
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((release / name).read_bytes())
    with pytest.raises(release_graphs.ExportError, match="onnx/model.onnx: its probabilities differ by 0.3"):
        release_graphs.write_release_graphs(model, tmp_path)


def test_only_a_model_has_graphs(tmp_path, capsys):
    options = ["--metric", "--onnx", "--dry_run", "--output", str(tmp_path / "release")]
    assert main(["publish", str(ROOT / "metrics/kl_grading"), "anna/kl", *options]) == 2
    assert "--onnx is for a model" in capsys.readouterr().err
