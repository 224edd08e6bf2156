"""The ablation: a fair grid, runs that go on after a stop, and a table of what they gave."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import ROOT

from clip_koa.evaluation.heads import Predictions
from clip_koa.evaluation.predictions import GradedSplit
from clip_koa.training.run_config import RunConfig, RunConfigError, read_run_config
from modeling_clip_koa import PROMPT_SETS
from studies.ablation.grid import CORNERS, EQUALS, cell_config, corner_cells, find_cells, folder_name, table_name
from studies.ablation.kept import KeptRunError, ValidationXrays, read_kept_run, recipe_of, write_kept_run
from studies.ablation.summary import CellResult, compare_cells, table_rows


def test_every_cell_sees_as_many_views_in_as_many_steps():
    shared = RunConfig().changed({"losses.consistency_weight": 4.0, "optimisation.epochs": 3})
    seen = set()
    for cell in find_cells(shared, ["all"]):
        config = cell_config(shared, cell, 1, "folder", train_size=1000)
        both = config.losses.symmetry or config.losses.consistency_weight > 0
        steps = config.optimisation
        assert both == (cell.views == 2)
        assert steps.max_steps <= 1000 // steps.batch_size * steps.epochs  # no cell ends before
        seen.add((steps.batch_size * cell.views, steps.max_steps, config.data.augmentation, config.run.seed))
    assert len(seen) == 1


def test_at_equal_epochs_every_cell_sees_the_same_xrays():
    shared = RunConfig().changed({"losses.consistency_weight": 8.0, "optimisation.epochs": 3})
    cells = find_cells(shared, ["all"])
    assert {"weight_0.5", "weight_2", "consistency_similarity", "prompts_case"} <= {cell.name for cell in cells}
    configs = [cell_config(shared, cell, 1, "folder", 1000, equal="epochs").optimisation for cell in cells]
    assert {(config.batch_size, config.epochs, config.max_steps) for config in configs} == {(16, 3, 1000 // 16 * 3)}


def test_tables_share_the_runs_that_are_alike():
    shared = RunConfig().changed({"losses.consistency_weight": 8.0})
    for cell in find_cells(shared, ["all"]):
        configs = {equal: cell_config(shared, cell, 1, "folder", 1000, equal) for equal in EQUALS}
        alike = configs["compute"] == configs["epochs"]
        assert alike == (folder_name(cell, "compute") == folder_name(cell, "epochs"))
    assert table_name("compute") == "ablation" and table_name("epochs") == "ablation_epochs"


def test_the_claim_goes_on_from_the_released_checkpoint():
    shared = read_run_config(ROOT / "configs" / "claim.yaml")
    config = json.loads((ROOT / shared.model.start / "config.json").read_text())
    assert PROMPT_SETS[shared.model.prompts] == config["prompts"]
    wanted = ("random_flips", "symmetry", "consistency", "both", "weight_0.5", "weight_2", "consistency_similarity")
    cells = find_cells(shared, list(wanted))
    assert {cell.name for cell in cells} == set(wanted)
    for cell in cells:
        run = cell_config(shared, cell, 0, "folder", 5778)
        assert run.optimisation.max_steps == shared.optimisation.max_steps and run.run.best_metric == "last"


def test_the_corners_are_the_four_corners():
    shared = RunConfig().changed({"losses.consistency_weight": 4.0})
    corners = {}
    for cell in corner_cells():
        config = cell_config(shared, cell, 0, "folder", 1000)
        corners[cell.name] = (config.losses.symmetry, config.losses.consistency_weight, config.data.random_flip)
    assert corners == {
        "plain": (False, 0.0, 0.0),
        "random_flips": (False, 0.0, 0.5),
        "symmetry": (True, 0.0, 0.0),
        "consistency": (False, 4.0, 0.0),
        "both": (True, 4.0, 0.0),
    }
    assert [cell.name for cell in find_cells(shared, ["corners"])] == list(CORNERS)


@pytest.mark.parametrize(
    ("changes", "names", "words"),
    [
        ({}, ["wings"], "--cells wings: use corners, all"),
        ({"losses.consistency_weight": 0.0}, ["all"], "consistency_weight above 0"),
        ({"losses.symmetry": False}, ["all"], "losses.symmetry: true"),
        ({"data.random_flip": 0.5}, ["all"], "no data.random_flip"),
        ({"data.corpus": "synthetic:40"}, ["all"], "other X-rays for each seed"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(changes, names, words):
    with pytest.raises(RunConfigError, match=words):
        find_cells(RunConfig().changed(changes), names)


def _graded(seed, skill, count=60) -> GradedSplit:
    """X-rays of `count / 2` people; the higher the skill, the more logits favour the true grade."""
    labels = torch.arange(count) % 5
    draws = torch.Generator().manual_seed(seed)
    logits = [
        torch.randn(count, 5, generator=draws) + skill * torch.nn.functional.one_hot(labels, 5) for _ in range(4)
    ]
    files = [f"{index}.png" for index in range(count)]
    return GradedSplit(Predictions(torch.arange(count), labels, *logits), files, [str(i // 2) for i in range(count)])


def test_cells_are_compared_seed_by_seed_and_together():
    plain, flips, *_ = corner_cells()
    weak = CellResult(flips, {seed: _graded(seed, 0.5) for seed in (0, 1)})
    strong = CellResult(plain, {seed: _graded(seed + 10, 3.0) for seed in (0, 1)})
    compared = compare_cells(weak, strong, "text", "text")
    expected = sum(strong.values("text", "accuracy")) / 2 - sum(weak.values("text", "accuracy")) / 2
    assert compared["difference"]["accuracy"] == pytest.approx(expected)
    low, high = compared["intervals"]["accuracy"]
    assert 0 < low < expected < high
    assert compared["seeds"] == [0, 1] and set(compared["mcnemar_p"]) == {0, 1}
    assert compare_cells(weak, weak, "text", "text")["difference"]["accuracy"] == 0
    assert compare_cells(weak, CellResult(plain, {7: _graded(0, 1)}), "text", "text") is None

    rows = {(row["cell"], row["head"]): row for row in table_rows([strong, weak])}
    assert rows["plain", "text"]["accuracy_difference"] == pytest.approx(expected)
    values = strong.values("text", "accuracy")
    assert rows["plain", "text"]["accuracy_sd"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert "accuracy_difference" not in rows["random_flips", "text"]


def _kept(folder, graded):
    """A kept run of predictions, the configuration it is of, and the X-rays."""
    (folder / "start").mkdir()
    (folder / "start" / "model.safetensors").write_bytes(b"weights")
    config = RunConfig().changed({"run.seed": 3, "model.start": str(folder / "start")})
    keys = [f"{(index * 37) % 101:064x}" for index in range(len(graded.files))]
    xrays = ValidationXrays(keys, graded.files, graded.people)
    write_kept_run(folder / "kept" / "both_seed3.parquet", config, graded, xrays)
    return folder / "kept" / "both_seed3.parquet", config, xrays


def test_a_kept_run_says_what_the_run_said_and_names_nobody(tmp_path):
    graded = _graded(0, 1.0)
    path, config, xrays = _kept(tmp_path, graded)
    again = read_kept_run(path, config, xrays)
    assert (again.files, again.people) == (graded.files, graded.people)
    for name, values in vars(graded.predictions).items():
        assert torch.equal(getattr(again.predictions, name), values), name
    # In another order, as in another folder whose files have other names.
    order = list(reversed(range(len(xrays.keys))))
    other = ValidationXrays(*([column[place] for place in order] for column in vars(xrays).values()))
    assert torch.equal(read_kept_run(path, config, other).predictions.logits, graded.predictions.logits[order])

    table = pq.read_table(path)
    assert table["xray"].to_pylist() == sorted(xrays.keys)
    content = path.read_bytes() + b"".join(table.schema.metadata.values())
    assert b".png" not in content and str(tmp_path).encode() not in content
    assert recipe_of(config) == recipe_of(config.changed({"run.output_dir": "elsewhere", "data.corpus": "elsewhere"}))
    # A file of before a field was there: the run had its default.
    older = {name: value for name, value in recipe_of(config).items() if name != "model.drop_path"}
    pq.write_table(table.replace_schema_metadata({"recipe": json.dumps(older)}), path)
    assert torch.equal(read_kept_run(path, config, xrays).predictions.logits, graded.predictions.logits)
    with pytest.raises(KeptRunError, match="model.drop_path: 0.0 -> 0.1"):
        read_kept_run(path, config.changed({"model.drop_path": 0.1}), xrays)


def test_the_kept_runs_of_the_claim_are_of_its_configuration(monkeypatch):
    monkeypatch.chdir(ROOT)
    shared = read_run_config("configs/claim.yaml")
    files = sorted((ROOT / "studies/ablation/claim").glob("*.parquet"))
    assert len(files) >= 10
    for path in files:
        name, seed = path.stem.rsplit("_seed", 1)
        equal = "epochs" if name.endswith("_epochs") else "compute"
        (cell,) = find_cells(shared, [name.removesuffix("_epochs")])
        config = cell_config(shared, cell, int(seed), "folder", 5778, equal)
        kept = json.loads(pq.read_schema(path).metadata[b"recipe"])
        # Another release may follow the one that they started from.
        assert {**kept, "model.start": ""} == {**recipe_of(config), "model.start": ""}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("recipe", "of another run \\(optimisation.epochs: 1 -> 7\\): give another --kept"),
        ("start", "of another run \\(model.start: [0-9a-f]{64} -> [0-9a-f]{64}\\)"),
        ("xrays", "of other X-rays than this validation split"),
        ("rows", "of other X-rays than this validation split"),
        ("columns", "is no kept run: it must hold xray, grade, logits_0"),
        ("bytes", "is damaged or no Parquet file"),
    ],
)
def test_a_kept_run_that_cannot_be_used_is_named(tmp_path, spoil, words):
    path, config, xrays = _kept(tmp_path, _graded(0, 1.0))
    if spoil == "recipe":
        words = words.replace("1 ->", f"{config.optimisation.epochs} ->")
        config = config.changed({"optimisation.epochs": 7})
    elif spoil == "start":
        (tmp_path / "start" / "model.safetensors").write_bytes(b"other weights")
    elif spoil == "xrays":
        xrays = ValidationXrays(["f" * 64, *xrays.keys[1:]], xrays.files, xrays.people)
    elif spoil == "rows":
        table = pq.read_table(path)
        pq.write_table(table.take([0, *range(table.num_rows)]), path)
    elif spoil == "columns":
        pq.write_table(pq.read_table(path).select(["xray"]), path)
    else:
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(KeptRunError, match=words) as refused:
        read_kept_run(path, config, xrays)
    assert str(path) in str(refused.value)


def test_predictions_of_other_xrays_are_not_kept(tmp_path):
    path, config, xrays = _kept(tmp_path, _graded(0, 1.0))
    before = path.read_bytes()
    with pytest.raises(KeptRunError, match="graded other X-rays"):
        write_kept_run(path, config, _graded(0, 1.0, count=50), xrays)
    assert path.read_bytes() == before


@pytest.fixture(scope="module")
def knees(tmp_path_factory):
    """A folder of generated X-rays with a train and a validation split."""
    folder = tmp_path_factory.mktemp("knees")
    for seed, (split, people) in enumerate({"train": 20, "validation": 10}.items()):
        command = [sys.executable, "-m", "dataset_script.synthetic", "--output", str(folder / f"drawn-{split}")]
        options = ["--split", split, "--people", str(people), "--image_size", "32", "--seed", str(seed)]
        subprocess.run([*command, *options], cwd=ROOT, check=True, capture_output=True)
        (folder / f"drawn-{split}" / split).rename(folder / split)
    return folder


@pytest.fixture
def tiny_ablation(tmp_path, knees):
    """A configuration of a few steps, and the command that runs it."""
    config = tmp_path / "ablation.yaml"
    values = {
        "run": {"checkpoint_steps": 1},
        "data": {"corpus": str(knees)},
        "model": {"start": "tiny"},
        "losses": {"consistency_weight": 1.0},
        "optimisation": {"epochs": 1, "batch_size": 8},
        "compute": {"mixed_precision": "no"},
    }
    config.write_text(yaml.safe_dump(values))
    output = tmp_path / "out"
    return output, [
        "-m",
        "studies.ablation",
        "--config",
        config,
        "--output",
        output,
        "--cells",
        "random_flips",
        "both",
    ]


ONE_VIEW = ("random_flips", "random_flips_epochs")


@pytest.mark.slow
def test_it_trains_compares_and_does_nothing_twice(tiny_ablation, run_python):
    output, command = tiny_ablation
    command += ["--equal", "compute", "epochs"]
    printed = run_python(*command, "--seeds", "0", "1").stdout
    assert "random_flips_epochs, seed 0 done, 2 of 6" in printed and "both, seed 1 done, 6 of 6" in printed
    assert not list(output.rglob("checkpoints"))
    one_view = [read_run_config(output / name / "seed-0/config.yaml").optimisation.epochs for name in ONE_VIEW]
    assert one_view == [2, 1]
    with open(output / "ablation_epochs.csv") as file:
        assert {(row["cell"], row["seeds"]) for row in csv.DictReader(file)} == {("random_flips", "2"), ("both", "2")}
    with open(output / "ablation.csv") as file:
        rows = list(csv.DictReader(file))
    assert {(row["cell"], row["seeds"]) for row in rows} == {("random_flips", "2"), ("both", "2")}
    both = next(row for row in rows if row["cell"] == "both" and row["head"] == "text")
    assert float(both["accuracy_low"]) <= float(both["accuracy_difference"]) <= float(both["accuracy_high"])
    text = (output / "ablation.md").read_text()
    assert "| less random_flips |" in text and "±" in text
    assert (output / "ablation.png").stat().st_size > 10_000

    weights = [path.stat().st_mtime_ns for path in sorted(output.rglob("best/model.safetensors"))]
    assert len(weights) == 6
    kept = ["--kept", output.parent / "kept"]
    again = run_python(*command, "--seeds", "0", "1", *kept)
    assert "6 runs, 6 of them done" in again.stdout
    # What was kept is all that the tables need.
    away = run_python(*command, "--seeds", "0", "1", *kept, "--output", output.parent / "away")
    assert "6 runs, 6 of them done" in away.stdout and len(list((output.parent / "kept").iterdir())) == 6
    assert not list((output.parent / "away").rglob("best"))
    for table in ("ablation.csv", "ablation_epochs.csv"):
        assert (output.parent / "away" / table).read_text() == (output / table).read_text()
    assert weights == [path.stat().st_mtime_ns for path in sorted(output.rglob("best/model.safetensors"))]

    config = output.parent / "ablation.yaml"
    config.write_text(config.read_text().replace("batch_size: 8", "batch_size: 4"))
    refused = run_python(*command, "--seeds", "0", expect=2)
    assert "holds another run" in refused.stderr and "optimisation.batch_size: 16 -> 8" in refused.stderr
    refused = run_python(*command, "--seeds", "0", *kept, "--output", output.parent / "away", expect=2)
    assert "random_flips_seed0.parquet is of another run (optimisation.max_steps: " in refused.stderr


@pytest.mark.slow
def test_a_stop_saves_and_the_next_start_goes_on(tiny_ablation, run_python):
    output, command = tiny_ablation
    config = output.parent / "ablation.yaml"
    config.write_text(config.read_text().replace("epochs: 1", "epochs: 6"))
    arguments = [sys.executable, *map(str, command), "--seeds", "0"]
    process = subprocess.Popen(arguments, cwd=ROOT, env=dict(os.environ), stderr=subprocess.PIPE, text=True)
    checkpoints = output / "random_flips" / "seed-0" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("step*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert "Start it again" in process.communicate(timeout=120)[1]
    assert process.returncode == 75
    assert not (output / "both").exists() and not list(output.rglob("predictions_*"))
    run_python(*command, "--seeds", "0")
    assert "Going on from" in (output / "random_flips" / "seed-0.log").read_text()


@pytest.mark.slow
def test_a_failed_run_is_named_with_its_log(tiny_ablation, run_python):
    output, command = tiny_ablation
    config = output.parent / "ablation.yaml"
    config.write_text(
        config.read_text().replace("epochs: 1", "epochs: 1\n  learning_rate: 1.0e+30\n  new_learning_rate: 1.0e+30")
    )
    failed = run_python(*command, "--seeds", "0", expect=2)
    assert "studies.ablation: random_flips, seed 0 failed with status 2" in failed.stderr
    assert f"{output}/random_flips/seed-0.log" in failed.stderr
