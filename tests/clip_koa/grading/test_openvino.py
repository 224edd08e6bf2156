"""Grading in OpenVINO: as PyTorch grades, compiled once, by nothing that tells others of it."""

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

pytest.importorskip("openvino", reason="needs the extra openvino")

from clip_koa.calibration.typicality import typicality_block  # noqa: E402
from clip_koa.commands import main  # noqa: E402
from clip_koa.grading import grader, openvino_cache, openvino_network  # noqa: E402
from clip_koa.grading.backends import choose_backend  # noqa: E402
from clip_koa.grading.grader import Grader  # noqa: E402
from clip_koa.grading.model_loading import CheckpointError  # noqa: E402
from clip_koa.grading.openvino_network import OpenVINOModel  # noqa: E402
from clip_koa.localisation.fit import new_locator  # noqa: E402
from clip_koa.training.checkpoints import save_model_folder  # noqa: E402
from dataset_script.synthetic import draw_knee  # noqa: E402
from modeling_clip_koa.calibration_clip_koa import Typicality, typicality_file  # noqa: E402
from modeling_clip_koa.localisation_clip_koa import locator_file  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Where this module's compiled networks are kept."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("compiled")
        patch.setenv(openvino_cache.CACHE_VARIABLE, str(folder))
        yield folder


@pytest.fixture(scope="module")
def folder(tiny_start, tmp_path_factory):
    """A model with typicality and a locator."""
    folder, model = tmp_path_factory.mktemp("models") / "model", tiny_start.model
    width = model.config.vision_config.hidden_size
    typicality = Typicality(typicality_block(model), torch.zeros(width), torch.eye(width), torch.arange(1000.0))
    torch.manual_seed(0)
    files = {
        "calibration.json": b'{"thresholds": {"0.90": 0.6}}',
        "typicality.safetensors": typicality_file(typicality),
        "localisation.safetensors": locator_file(new_locator(model, tiny_start.image_processor)),
    }
    save_model_folder(folder, model, tiny_start.image_processor, tiny_start.tokenizer, files)
    return folder


@pytest.fixture(scope="module")
def compiled(folder):
    """The model compiled, and the network that finds knees with it."""
    return OpenVINOModel(folder)


PICTURES = [draw_knee(number % 5, "LR"[number % 2], number, 96) for number in range(7)]


def _same(found, expected, tolerance=1e-5):
    for one, other in zip(found, expected, strict=True):
        assert (one.grade, one.confidence_set, one.box) == (other.grade, other.confidence_set, other.box)
        for part in ("probabilities", "image_probabilities", "mirror_probabilities"):
            assert getattr(one, part) == pytest.approx(getattr(other, part), abs=tolerance)
        assert one.atypicality == pytest.approx(other.atypicality, abs=0.002)


def test_it_grades_and_finds_as_pytorch_does(folder, compiled):
    model = Grader(str(folder), backend="pytorch").model
    for count in (1, 7):  # the batch is free
        _same(compiled.grade(PICTURES[:count]), model.grade(PICTURES[:count]))
    _same(compiled.grade(PICTURES, readings=3), model.grade(PICTURES, readings=3))
    locator = model.beside.locator
    windows = [picture.convert("L").resize((locator.window,) * 2) for picture in PICTURES]
    np.testing.assert_allclose(locator.locate(compiled, windows), locator.locate(model, windows), atol=1e-4)
    expected = model.explain(PICTURES[0], 2)
    torch.testing.assert_close(compiled.explain(PICTURES[0], 2).heat_map, expected.heat_map)


def test_a_second_start_compiles_nothing_and_reads_no_weights(folder, compiled, monkeypatch):
    monkeypatch.setattr(openvino_network, "load_checkpoint", None)
    again = OpenVINOModel(folder)
    assert not again.was_compiled and again.entry == compiled.entry
    _same(again.grade(PICTURES), compiled.grade(PICTURES), 0)
    # A picture of another size, which the image processor's settings are read for.
    large = draw_knee(3, "L", 1, 150)
    _same([again.grade(large)], [compiled.grade(large)], 0)


def test_other_weights_are_never_graded_with_what_was_kept(folder, tiny_start, compiled, tmp_path):
    copy = tmp_path / "model"
    tokenizer = tiny_start.tokenizer
    model = Grader(str(folder), backend="pytorch").model
    with torch.no_grad():
        model.visual_projection.weight[:, 0] += 0.05
    save_model_folder(copy, model, model.image_processor, tokenizer)
    other = OpenVINOModel(copy)
    assert other.was_compiled and other.entry.name != compiled.entry.name
    assert other.grade(PICTURES[0]).probabilities != compiled.grade(PICTURES[0]).probabilities


def test_a_damaged_entry_is_compiled_anew(folder, compiled, tmp_path, monkeypatch):
    monkeypatch.setenv(openvino_cache.CACHE_VARIABLE, str(tmp_path))
    entry = OpenVINOModel(folder).entry
    (entry / "kept.json").write_text("{")
    again = OpenVINOModel(folder)
    assert again.was_compiled and again.entry == entry
    assert json.loads((entry / "kept.json").read_text())["settings"]["do_resize"] is True
    assert not OpenVINOModel(folder).was_compiled


def test_a_damaged_network_is_compiled_anew(folder, compiled, tmp_path, monkeypatch):
    monkeypatch.setenv(openvino_cache.CACHE_VARIABLE, str(tmp_path))
    entry = OpenVINOModel(folder).entry
    (entry / "grading.blob").write_bytes(b"no network")
    again = OpenVINOModel(folder)
    _same(again.grade(PICTURES), compiled.grade(PICTURES))
    assert again.entry == entry and (entry / "grading.blob").stat().st_size > 1000
    assert not OpenVINOModel(folder).was_compiled


def test_in_how_many_parts_and_by_how_many_threads_changes_nothing(folder, monkeypatch):
    """A batch is computed in parts by threads that wait for none; a single X-ray by all of them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model = OpenVINOModel(folder)
    finally:
        torch.set_num_threads(threads)
    alone = [model.grade(picture) for picture in PICTURES]
    for size in (4, 1):
        monkeypatch.setitem(openvino_network._PARTS, openvino_network.GRADING, size)
        _same(model.grade(PICTURES), alone)
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(model.grade, [PICTURES] * 6):
            _same(found, alone)
    assert [streams for _, streams in model._networks] == [1, 2]


def test_two_batches_are_graded_at_once_and_come_in_order(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(grader, "BATCH_SIZE", 2)
    files = [tmp_path / f"{number}.png" for number in range(5)]
    for file, picture in zip(files, PICTURES, strict=False):
        picture.save(file)
    second, grade_read = threading.Event(), Grader._grade_read

    def slowly(self, chunk):
        if chunk[0][0] == files[0]:
            assert second.wait(30)
        try:
            return grade_read(self, chunk)
        finally:
            if chunk[0][0] == files[2]:
                second.set()

    monkeypatch.setattr(Grader, "_grade_read", slowly)
    assert [xray.file for xray in Grader(str(folder), backend="openvino").grade(files)] == list(map(str, files))


def test_where_compiled_networks_lie(folder, tmp_path, monkeypatch):
    """Beside the model; where that cannot be written, in the user's cache; the newest few stay."""
    monkeypatch.delenv(openvino_cache.CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = tmp_path / "models" / "model"
    model.mkdir(parents=True)
    kept = openvino_cache.keep_entry(str(model), "one", {"file": b"content"})
    assert kept == tmp_path / "models" / ".model.openvino" / "one" and (kept / "file").read_bytes() == b"content"
    assert openvino_cache.find_entry(str(model), "one") == kept
    assert openvino_cache.find_entry(str(model), "two") is None
    for number in range(5):
        path = openvino_cache.keep_entry(str(model), f"more{number}", {})
        os.utime(path, (number + 1, number + 1))
    names = {path.name for path in kept.parent.iterdir()}
    assert "one" in names and len(names) == 4

    other = tmp_path / "models" / "other"
    other.mkdir()
    (tmp_path / "models" / ".other.openvino").write_text("in its place")
    kept = openvino_cache.keep_entry(str(other), "one", {})
    assert (
        kept.is_relative_to(tmp_path / "cache" / "clip-koa") and openvino_cache.find_entry(str(other), "one") == kept
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "models" / ".other.openvino"))
    assert openvino_cache.keep_entry(str(other), "two", {}) is None


def test_bf16_is_asked_for_and_said(folder, compiled):
    if "BF16" not in compiled._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(CheckpointError, match="does not compute in it"):
            OpenVINOModel(folder, "bf16")
        assert OpenVINOModel(folder, "auto").precision == "fp32"
        return
    rough = OpenVINOModel(folder, "auto")
    assert rough.precision == "bf16" and compiled.precision == "fp32"
    for one, other in zip(rough.grade(PICTURES), compiled.grade(PICTURES), strict=True):
        assert one.probabilities != other.probabilities
        assert one.probabilities == pytest.approx(other.probabilities, abs=0.03)
    with pytest.raises(CheckpointError, match="clip-koa export-openvino"):
        OpenVINOModel(folder, "int8")


def test_auto_takes_it_and_a_table_is_of_one_backend(folder, tmp_path, capsys):
    assert choose_backend(str(folder), "cpu") == "openvino" and choose_backend(str(folder), "cuda") == "pytorch"
    knees, table = tmp_path / "knees", tmp_path / "grades.jsonl"
    knees.mkdir()
    for number in range(2):
        draw_knee(number, "L", number, 96).save(knees / f"{number}L.png")
    grade = ("grade", "--model", folder, "--framing", "as_is", "--output")
    assert main([*grade, table, knees]) == 0
    assert "backend=openvino precision=fp32" in json.loads(table.read_text().splitlines()[0])["made_by"]
    assert main([*grade, table, "--backend", "pytorch", knees]) == 2
    assert "backend=openvino, now backend=pytorch" in capsys.readouterr().err

    earlier = tmp_path / "earlier.csv"
    assert main([*grade, earlier, "--backend", "pytorch", knees]) == 0
    draw_knee(2, "L", 2, 96).save(knees / "2L.png")
    assert main([*grade, earlier, knees]) == 0
    printed = capsys.readouterr().out
    assert "begun with --backend pytorch, and goes on with it" in printed and "(2 of them before" in printed
    assert earlier.read_text().count("backend=pytorch") == 3


def test_nothing_of_training_or_of_transformers_is_loaded_and_nobody_is_told(folder, run_python, tmp_path):
    """The second start is quick; OpenVINO's tools would report their use over the network."""
    draw_knee(1, "L", 1, 96).save(tmp_path / "knee.png")
    OpenVINOModel(folder)
    program = (
        "import sys; from clip_koa.commands import main; main(['grade', *sys.argv[1:]]); "
        "print([name for name in ('openvino', 'openvino_telemetry', 'transformers', 'datasets')"
        " if sys.modules.get(name)])"
    )
    command = ("-c", program, "--model", folder, "--framing", "as_is", tmp_path / "knee.png")
    printed = run_python(*command, HOME=str(tmp_path / "home")).stdout
    assert printed.splitlines()[-1] == "['openvino']" and not (tmp_path / "home").exists()
