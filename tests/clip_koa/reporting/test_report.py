"""The report of a run, from whatever of it is there."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import matplotlib
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from clip_koa.evaluation.heads import Predictions, measure_heads
from clip_koa.evaluation.predictions import GradedSplit, write_predictions
from clip_koa.reporting.page import hardest_xrays
from clip_koa.reporting.pictures import CURVE_POINTS, learning_curves
from clip_koa.reporting.report import write_report


def _train_record(step):
    parts = {
        "loss": 6.0 / step,
        "symmetry_loss": 3.0 / step,
        "consistency_loss": 0.1 / step,
        "classifier_loss": 2.9 / step,
    }
    return {
        "kind": "train",
        "step": step,
        "epoch": step / 10,
        "learning_rate": 1e-4,
        "images_per_second": 9.0,
        **parts,
    }


def _evaluation_record(checkpoint):
    """As a run without prediction files left it, before the metric knew of probabilities."""
    metrics = {
        "num_samples": 10,
        "accuracy": 0.7,
        "balanced_accuracy": 0.6,
        "macro_f1": 0.5,
        "quadratic_weighted_kappa": 0.8,
        "mae": 0.3,
        "recall_per_grade": [0.8, 0.5, None, 0.5, 1.0],
        "confusion_matrix": [[3, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0] * 5, [0, 0, 1, 1, 0], [0, 0, 0, 0, 2]],
        "flip_agreement": 0.9,
    }
    heads = dict.fromkeys(("text", "text_flip_averaged", "linear"), metrics)
    return {"kind": "evaluation", "split": "validation", "checkpoint": checkpoint, "step": 10, "epoch": 1, **heads}


def _write(folder, records):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_complete_run(tmp_path):
    _write(tmp_path, [_train_record(5), _train_record(10), _evaluation_record("last"), _evaluation_record("best")])
    (tmp_path / "config.yaml").write_text("note: <script>\n")
    (tmp_path / "run.json").write_text('{"git": "<revision>"}')
    page = write_report(tmp_path).read_text()
    assert "0.700" in page and "&lt;script&gt;" in page and "&lt;revision&gt;" in page and "10 steps" in page
    assert json.loads((tmp_path / "report/metrics.json").read_text())["validation"]["step"] == 10
    assert {path.name for path in (tmp_path / "report").glob("*.png")} == {
        "learning_curves.png", "confusion_matrix_validation.png", "recall_per_grade_validation.png",
    }  # fmt: skip
    assert page.count("<img") == page.count("alt=") == 3


@pytest.mark.parametrize("records", [[], [_train_record(1)], [_evaluation_record("last")]])
def test_a_run_that_is_not_finished(tmp_path, records):
    _write(tmp_path, records)
    assert "No checkpoint of this run has been evaluated yet" in write_report(tmp_path).read_text()


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):
        write_report(tmp_path)


def _graded(size=15):
    """Random predictions; the last X-ray is grade 4 and taken for grade 0 with certainty."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(size) % 4
    labels[-1] = 4
    logits = [2 * torch.eye(5)[labels] + torch.randn(size, 5, generator=generator) for _ in range(4)]
    for view in logits:
        view[-1] = torch.tensor([20.0, 0, 0, 0, 0])
    files = [f"val/{label}/{index}.png" for index, label in enumerate(labels)]
    people = [f"person {index // 2}" for index in range(size)]
    return GradedSplit(Predictions(torch.arange(size), labels, *logits), files, people)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, with the predictions of its best checkpoint and the report on them."""
    folder = tmp_path_factory.mktemp("run")
    _write(folder, [_train_record(5), _evaluation_record("last"), _evaluation_record("best")])
    write_predictions(folder / "report" / "predictions_validation.jsonl", _graded())
    before = {name: value for name, value in matplotlib.rcParams.items() if name != "backend"}
    write_report(folder)
    assert before == {name: value for name, value in matplotlib.rcParams.items() if name != "backend"}
    return folder


@pytest.fixture(scope="module")
def page_with_thumbnails(run, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy") / "run"
    shutil.copytree(run, copy)
    return write_report(copy, {"validation": _corpus(_graded())}).read_text()


def _corpus(graded):
    """A split of plain gray X-rays, in another order than the predictions."""
    rows = [{"image": PILImage.new("L", (40, 40), 10 * index), "file": f} for index, f in enumerate(graded.files)]
    return Dataset.from_list(rows[::-1], features=Features({"image": Image(), "file": Value("string")}))


def _images(page):
    tags = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    parser.feed(page)
    return [attributes for tag, attributes in tags if tag == "img"], {tag for tag, _ in tags}


def test_the_page_needs_nothing_but_itself(page_with_thumbnails):
    text = page_with_thumbnails
    images, tags = _images(text)
    assert len(images) == 6 + 12
    assert all(re.match(r"data:image/(png|jpeg);base64,", image["src"]) for image in images)
    assert all(len(image["alt"]) > 30 for image in images)
    assert not {"script", "link", "iframe"} & tags and not re.search(r"https?://|url\(", text)
    assert "Research only" in text


def test_figures_have_intervals_where_predictions_tell_the_people(run):
    page = (run / "report/index.html").read_text()
    graded = _graded()
    expected = measure_heads(graded.predictions, graded.people)["text_flip_averaged"]
    low, high = expected["intervals"]["accuracy"]
    assert low < expected["accuracy"] < high
    assert f"<b>{expected['accuracy']:.3f}</b><span>{low:.3f} to {high:.3f}</span>" in page
    assert "8 people" in page
    assert json.loads((run / "report/metrics.json").read_text())["validation"]["text_flip_averaged"] == expected


def test_the_hardest_xrays(run, page_with_thumbnails):
    graded = _graded()
    hardest = hardest_xrays(graded, count=3)
    assert len(hardest) == 3 and hardest[0]["file"] == graded.files[-1]
    assert (hardest[0]["true"], hardest[0]["predicted"]) == ("KL4", "KL0")
    assert hardest[0]["rows"][0]["image"] > 0.99 and hardest[0]["thumbnail"] is None
    assert "keep this page on your own disk" in page_with_thumbnails
    without = (run / "report/index.html").read_text()
    assert "image/jpeg" not in without and "own disk" not in without and graded.files[-1] in without


def test_a_thumbnail_is_of_its_own_xray():
    graded = _graded()
    data = hardest_xrays(graded, _corpus(graded), count=1)[0]["thumbnail"]
    image = PILImage.open(io.BytesIO(base64.b64decode(data.split(",")[1])))
    assert abs(image.getpixel((5, 5)) - 10 * 14) < 3


def test_a_grade_without_xrays_is_no_recall_of_zero(tmp_path):
    _write(tmp_path, [_evaluation_record("best")])
    assert re.search(r"KL2 mild</th>\s*<td>n/a</td>", write_report(tmp_path).read_text())


def test_diagrams_of_probabilities_need_predictions(run, tmp_path):
    assert "Image against mirror image" in (run / "report/index.html").read_text()
    _write(tmp_path, [_evaluation_record("best")])
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "predictions_validation.jsonl").write_text("")
    assert "Image against mirror image" not in write_report(tmp_path).read_text()


def test_a_line_that_a_killed_run_was_writing_is_passed_over(tmp_path):
    _write(tmp_path, [_train_record(5)])
    whole = write_report(tmp_path).read_bytes()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "st')
    assert write_report(tmp_path).read_bytes() == whole
    assert not list((tmp_path / "report").glob(".*"))


def test_a_broken_line_is_named(tmp_path):
    _write(tmp_path, [_train_record(5)])
    (tmp_path / "metrics.jsonl").write_text("{oops\n" + (tmp_path / "metrics.jsonl").read_text())
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1 "):
        write_report(tmp_path)


@pytest.mark.filterwarnings("error")
def test_a_loss_switched_off_fits_the_logarithmic_axis(tmp_path):
    _write(tmp_path, [{**_train_record(1), "consistency_loss": 0.0}])
    assert write_report(tmp_path).is_file()


@pytest.mark.filterwarnings("error")
def test_one_xray_of_one_grade(tmp_path):
    """No interval, no ROC, no recall but one; and a page all the same."""
    _write(tmp_path, [_evaluation_record("best")])
    graded = _graded(size=1)
    write_predictions(tmp_path / "report" / "predictions_validation.jsonl", graded)
    page = write_report(tmp_path).read_text()
    results = json.loads((tmp_path / "report/metrics.json").read_text())["validation"]["text"]
    assert results["auroc_osteoarthritis"] is None and results["intervals"]["accuracy"] is None
    assert "AUROC, grade ≥ 2</th>\n<td>n/a</td>" in page and "ROC of osteoarthritis" not in page
    assert "recall_per_grade_validation.png" in {path.name for path in (tmp_path / "report").iterdir()}


def test_losses_of_many_steps_are_drawn_as_means_that_follow_each_other():
    many = [{**_train_record(1), "epoch": step / 1000, "loss": 1.0 + step % 2} for step in range(3000)]
    line = learning_curves(many).axes[0].lines[0]
    assert len(line.get_xdata()) == CURVE_POINTS and line.get_ydata() == pytest.approx(1.5, abs=0.1)
    assert list(line.get_xdata()) == sorted(line.get_xdata())
