"""The report of a run, from whatever of it is there."""

import json
import re
from html.parser import HTMLParser

import pytest

from clip_koa.publishing.report import write_report


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
    page = write_report(tmp_path).read_text()
    assert "0.7000" in page and "&lt;script&gt;" in page
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


@pytest.fixture
def run(tmp_path):
    """A finished run, with the predictions of its best checkpoint."""
    _write(tmp_path, [_train_record(5), _evaluation_record("last"), _evaluation_record("best")])
    (tmp_path / "report").mkdir()
    probabilities = {"probabilities": [0.1, 0.2, 0.4, 0.2, 0.1], "flipped_probabilities": [0.2, 0.2, 0.3, 0.2, 0.1]}
    rows = [{"file": f"{grade}.png", "label": grade, **probabilities} for grade in range(5)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "report" / "predictions_validation.jsonl").write_text(lines)
    return tmp_path


def test_the_page_needs_nothing_but_itself(run):
    tags = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    text = write_report(run).read_text()
    parser.feed(text)
    images = [attributes for tag, attributes in tags if tag == "img"]
    assert len(images) == 4
    assert all(image["src"].startswith("data:image/png;base64,") and len(image["alt"]) > 40 for image in images)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in tags} and not re.search(r"https?://|url\(", text)
    assert "Research only" in text


def test_a_grade_without_xrays_is_no_recall_of_zero(run):
    assert re.search(r"KL2 mild</th>\s*<td>n/a</td>", write_report(run).read_text())


def test_the_scatter_needs_predictions(run):
    assert "Image against mirror image" in write_report(run).read_text()
    (run / "report" / "predictions_validation.jsonl").write_text("")
    assert "Image against mirror image" not in write_report(run).read_text()


def test_a_line_that_a_killed_run_was_writing_is_passed_over(run):
    whole = write_report(run).read_bytes()
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "st')
    assert write_report(run).read_bytes() == whole
    assert not list((run / "report").glob(".*"))


def test_a_broken_line_is_named(run):
    (run / "metrics.jsonl").write_text("{oops\n" + (run / "metrics.jsonl").read_text())
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1 "):
        write_report(run)


@pytest.mark.filterwarnings("error")
def test_a_loss_switched_off_fits_the_logarithmic_axis(tmp_path):
    _write(tmp_path, [{**_train_record(1), "consistency_loss": 0.0}])
    assert write_report(tmp_path).is_file()
