"""The corpus as a benchmark, end to end: three entries, published to a Hub on the loopback and measured again."""

import csv
import hashlib
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from hub_server import HubServer
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, cohen_kappa_score

from clip_koa.commands import main
from clip_koa.evaluation import submissions
from clip_koa.evaluation.heads import Predictions
from clip_koa.evaluation.predictions import GradedSplit, write_predictions
from clip_koa.evaluation.submissions import SubmissionError, benchmark_split, entry_lines, read_entry
from dataset_script.layouts import find_files
from dataset_script.synthetic import draw_knee

TOKEN = "hf_" + "testtoken" * 4
PEOPLE = 12
# How often the drawn entries are wrong, by their model's name.
WRONG = {"anna/knees": 2, "bea/knees-large": 6, "carl/grader.v2": 11}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Both knees of a dozen drawn people in the validation split, named as the data set's are."""
    folder = tmp_path_factory.mktemp("corpus") / "knees"
    for person in range(PEOPLE):
        for place, side in enumerate("LR"):
            grade = (person + place) % 5
            (folder / "val" / str(grade)).mkdir(parents=True, exist_ok=True)
            draw_knee(grade, side, 100 + person, 48).save(folder / "val" / str(grade) / f"9{person:06d}{side}.png")
    return folder


@pytest.fixture(scope="module")
def split(corpus):
    return benchmark_split(find_files(corpus)["validation"], "validation")


@pytest.fixture(scope="module")
def entries(split, tmp_path_factory):
    """Three entries: each is sure of its grades, and wrong by one in the first so many X-rays."""
    folder = tmp_path_factory.mktemp("entries")
    (folder / "validation").mkdir()
    for model, wrong in WRONG.items():
        rows = []
        for place, (xray, grade) in enumerate(zip(split.xrays, split.grades, strict=True)):
            shares = np.full(5, 0.05)
            shares[grade if place >= wrong else (grade + 1) % 5] = 0.8
            rows.append((xray, shares.tolist()))
        name = model.replace("/", "--")
        (folder / "validation" / f"{name}.jsonl").write_text(entry_lines(rows[::-1]))  # in any order
    return folder


def test_three_entries_are_published_and_measured(corpus, split, entries, tmp_path):
    server = HubServer()
    environment = {
        **os.environ, "HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN,
        "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "home"),
    }  # fmt: skip
    command = [sys.executable, "push_to_hub.py", str(corpus), "anna/knee-benchmark", "--benchmark", str(entries)]
    pushed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert pushed.returncode == 0, pushed.stderr
    assert any(path.startswith("/api/datasets/anna/knee-benchmark/commit/") for _, path in server.log)
    files = server.files("main")
    server.shutdown()

    benchmark = yaml.safe_load(files["eval.yaml"])
    assert set(benchmark) == {"name", "description", "evaluation_framework", "tasks"}
    assert benchmark["tasks"] == [{"id": "validation", "config": "default", "split": "validation"}]
    assert {"kl_grading/kl_grading.py", "kl_grading/paired.py", "dataset_script/radiograph.py"} <= set(files)
    for name, content in files.items():  # no person's number, and no X-ray
        assert not any(f"9{person:06d}".encode() in content for person in range(PEOPLE)), name
        assert not content.startswith(b"\x89PNG")

    # Of what was published alone, by others' hands than ours.
    rows = list(csv.DictReader(io.StringIO(files["splits/validation.csv"].decode())))
    true = {row["xray"]: int(row["grade"]) for row in rows}
    assert len(rows) == 2 * PEOPLE and len({row["person"] for row in rows}) == PEOPLE
    results = json.loads(files["results/validation.json"])
    assert [row["model"] for row in results] == list(WRONG)
    right = {}
    for row in results:
        said = files[f"submissions/validation/{row['model'].replace('/', '--')}.jsonl"].decode().splitlines()
        named = {line["xray"]: int(np.argmax(line["probabilities"])) for line in map(json.loads, said)}
        pairs = [true[xray] for xray in true], [named[xray] for xray in true]
        assert row["figures"]["accuracy"] == pytest.approx(accuracy_score(*pairs))
        kappa = cohen_kappa_score(*pairs, weights="quadratic")
        assert row["figures"]["quadratic_weighted_kappa"] == pytest.approx(kappa)
        low, high = row["figures"]["intervals"]["quadratic_weighted_kappa"]
        assert low <= kappa <= high and low < high
        right[row["model"]] = np.equal(*pairs)
    first, last = right["anna/knees"], right["carl/grader.v2"]
    only = int((first & ~last).sum()), int((last & ~first).sum())
    assert results[2]["against_first"]["mcnemar_p"] == pytest.approx(binomtest(only[0], sum(only)).pvalue)
    assert results[0]["against_first"] is None

    card = files["README.md"].decode()
    table = [line for line in card.splitlines() if line.startswith(("| 1 |", "| 2 |", "| 3 |"))]
    assert [line.split("|")[2].strip() for line in table] == list(WRONG)
    assert (
        f"{results[0]['figures']['quadratic_weighted_kappa']:.3f} (" in table[0] and "24 X-rays of 12 people" in card
    )

    for name, content in files.items():  # published again out of what was published, it is the same
        if name.startswith("submissions/"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
    again = ["--benchmark", str(tmp_path / "submissions"), "--dry_run", "--output", str(tmp_path / "again")]
    assert main(["publish", str(corpus), "anna/knee-benchmark", *again]) == 0
    written = [path for path in (tmp_path / "again").rglob("*") if path.is_file()]
    assert {path.relative_to(tmp_path / "again").as_posix(): path.read_bytes() for path in written} == files


def test_the_knees_of_one_person_are_measured_without_intervals(tmp_path):
    for number, (grade, side) in enumerate(zip((2, 4), "LR", strict=True)):
        (tmp_path / "knees" / "test" / str(grade)).mkdir(parents=True, exist_ok=True)
        draw_knee(grade, side, number, 48).save(tmp_path / "knees" / "test" / str(grade) / f"9000001{side}.png")
    split = benchmark_split(find_files(tmp_path / "knees")["test"], "test")
    (tmp_path / "entries" / "test").mkdir(parents=True)
    for name in ("anna--knees", "bea--knees"):
        rows = [(xray, np.eye(5)[grade].tolist()) for xray, grade in zip(split.xrays, split.grades, strict=True)]
        (tmp_path / "entries" / "test" / f"{name}.jsonl").write_text(entry_lines(rows))
    arguments = ["--benchmark", str(tmp_path / "entries"), "--dry_run", "--output", str(tmp_path / "release")]
    assert main(["publish", str(tmp_path / "knees"), "anna/b", *arguments]) == 0
    card = (tmp_path / "release" / "README.md").read_text().splitlines()
    first, second = (
        [cell.strip() for cell in line.split("|")[2:-1]] for line in card if line[:5] in ("| 1 |", "| 2 |")
    )
    assert first[:3] == ["anna/knees", "1.000", "1.000"] and first[-2:] == ["", ""]
    assert second[:3] == ["bea/knees", "1.000", "1.000"] and second[-2:] == ["0.000", "1"]


def test_an_xray_is_named_by_its_picture_and_by_nothing_else(corpus, split):
    file = next((corpus / "val" / "3").iterdir())
    with Image.open(file) as picture:  # stored gray, upright and bone bright, so that any reader gives the same
        content = f"{picture.width}x{picture.height}\n".encode() + picture.convert("L").tobytes()
    assert split.grades[split.xrays.index(hashlib.sha256(content).hexdigest()[:16])] == 3
    assert list(split.xrays) == sorted(split.xrays) and "9000" not in split.to_csv()
    knees = [split.people.count(person) for person in set(split.people)]
    assert knees == [2] * PEOPLE


def test_an_entry_is_made_of_what_evaluate_wrote(corpus, split, tmp_path, capsys):
    xrays = find_files(corpus)["validation"]
    logits = torch.nn.functional.one_hot(torch.tensor([xray.grade for xray in xrays]), 5).float() * 3
    predictions = Predictions(torch.arange(len(xrays)), logits.argmax(-1), *[logits] * 4)
    graded = GradedSplit(predictions, [xray.file for xray in xrays], [xray.person_id for xray in xrays])
    write_predictions(tmp_path / "predictions.jsonl", graded)
    output = tmp_path / "validation" / "anna--knees.jsonl"
    arguments = [str(tmp_path / "predictions.jsonl"), str(output), "--data_dir", str(corpus)]
    assert submissions.main(arguments) == 0
    entry = read_entry(output, split)
    assert entry.model == "anna/knees" and entry.probabilities.argmax(-1).tolist() == list(split.grades)
    assert "9000" not in output.read_text()
    assert submissions.main([arguments[0], str(tmp_path / "mine.jsonl"), *arguments[2:]]) == 2
    assert "as USER--MODEL.jsonl" in capsys.readouterr().err


def _lines(split, change=lambda rows: None) -> str:
    rows = [[xray, [0.2] * 5] for xray in split.xrays]
    change(rows)
    return entry_lines(rows)


BROKEN = {
    "lacks 1 of 24 X-rays": lambda rows: rows.pop(),
    "stands there twice": lambda rows: rows.append(rows[0]),
    "is no X-ray of this split": lambda rows: rows.append(["0" * 16, [0.2] * 5]),
    "add up to 1.3": lambda rows: rows[3].__setitem__(1, [0.5] + [0.2] * 4),
    "none below 0": lambda rows: rows[3].__setitem__(1, [1.2, -0.2, 0, 0, 0]),
    "must be 5 numbers": lambda rows: rows[3].__setitem__(1, [0.5, 0.5]),
    "5 numbers, none": lambda rows: rows[3].__setitem__(1, [float("nan")] * 5),
    "line 4 is no answer": lambda rows: rows[3].__setitem__(1, None),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_an_entry_that_cannot_be_measured_is_refused(split, tmp_path, reason):
    path = tmp_path / "anna--knees.jsonl"
    path.write_text(_lines(split, BROKEN[reason]))
    with pytest.raises(SubmissionError, match=reason) as refused:
        read_entry(path, split)
    assert "anna--knees.jsonl" in str(refused.value)


@pytest.mark.parametrize(
    "line", [b"\xff\xfe\x00", b"[" * 100_000, b'{"xray": "a", "probabilities": [1%s]}' % (b"0" * 400)]
)
def test_a_line_of_no_text_or_of_no_number_is_refused(split, tmp_path, line):
    path = tmp_path / "anna--knees.jsonl"
    path.write_bytes(_lines(split).encode() + line + b"\n")
    with pytest.raises(SubmissionError, match="anna--knees.jsonl, line 25 is no answer"):
        read_entry(path, split)


def test_what_is_no_benchmark_is_told_and_leaves_nothing(corpus, split, tmp_path, capsys):
    output = tmp_path / "release"

    def told(*arguments) -> str:
        assert main(["publish", *map(str, arguments), "--dry_run", "--output", str(output)]) == 2
        assert not output.exists()
        return capsys.readouterr().err

    assert "is no folder" in told(corpus, "anna/b", "--benchmark", tmp_path / "nowhere")
    (tmp_path / "entries" / "train").mkdir(parents=True)
    assert "train is no split of the corpus" in told(corpus, "anna/b", "--benchmark", tmp_path / "entries")
    (tmp_path / "entries" / "train").rename(tmp_path / "entries" / "validation")
    (tmp_path / "entries" / "validation" / "mine.jsonl").write_text(_lines(split))
    assert "mine.jsonl: name an entry" in told(corpus, "anna/b", "--benchmark", tmp_path / "entries")
    assert "name one of" in told(corpus, "anna/b", "--metric", "--benchmark", tmp_path / "entries")
    xrays = find_files(corpus)["validation"]
    with pytest.raises(SubmissionError, match="are the same picture"):
        benchmark_split([*xrays, xrays[0]], "validation")
