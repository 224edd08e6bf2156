"""A run's numbers and hardest X-rays in Trackio's records, which stay in the run's folder."""

import json
import sqlite3
from importlib.util import find_spec

import pytest
from PIL import Image

from clip_koa.training import trackers
from clip_koa.training.config_fields import RunConfigError
from clip_koa.training.run_config import RunConfig, parse_run_config
from clip_koa.training.trackers import check_trackers

needs_trackio = pytest.mark.skipif(find_spec("trackio") is None, reason="needs the extra trackio")


def test_trackers_are_of_a_launch_and_no_field_of_a_run(monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: object())
    config = parse_run_config(["--trackers", "trackio, tensorboard"])
    assert config.trackers == ("trackio", "tensorboard") and config == RunConfig()
    assert "trackio" not in config.to_yaml() and RunConfig().trackers == ("tensorboard",)
    assert config.changed({"run.seed": 3}).trackers == config.trackers


def test_what_is_no_tracker_or_not_there_is_told(monkeypatch):
    with pytest.raises(RunConfigError, match="trackers='wandb': it must be tensorboard or trackio, or both"):
        check_trackers("tensorboard,wandb")
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'clip-koa\[trackio\]'"):
        check_trackers("trackio")


def test_pictures_of_people_are_sent_to_no_other_machine(monkeypatch):
    """Numbers may be: whoever sets these variables wants it."""
    sent = []
    tracker = type("Tracker", (), {"name": "trackio", "log": lambda self, values, step: sent.append(values)})()
    accelerator = type("Accelerator", (), {"trackers": [tracker], "is_main_process": True})()
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.setenv(name, "anna/dashboard")
        trackers.log_pictures(accelerator, "hardest X-rays", [(Image.new("L", (8, 8)), "KL1, graded KL3")], 4)
        monkeypatch.delenv(name)
    assert sent == []


@needs_trackio
@pytest.mark.slow
def test_a_run_is_in_trackios_records_with_its_hardest_xrays(run_python, tmp_path, monkeypatch):
    for name in ("TRACKIO_DIR", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "run"
    options = ("--data.corpus", "synthetic:24", "--optimisation.epochs", 1, "--model.start", "tiny")
    run_python("train.py", *options, "--trackers", "tensorboard,trackio", "--run.output_dir", folder)
    assert list((folder / "tensorboard").rglob("events.*"))
    with sqlite3.connect(folder / "trackio" / "clip_koa.db") as records:
        found = records.execute("select run_name, step, metrics from metrics").fetchall()
    assert {row[0] for row in found} == {"run"}
    rows = [(step, json.loads(values)) for _, step, values in found]
    written = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = {record["step"]: record["loss"] for record in written if record["kind"] == "train"}
    assert {step: values["train/loss"] for step, values in rows if "train/loss" in values} == pytest.approx(losses)
    shown = [value for _, values in rows for name, value in values.items() if name.startswith("hardest X-rays/")]
    assert len(shown) == 12
    for value in shown:
        assert value["_type"] == "trackio.image" and ", graded KL" in value["caption"]
        with Image.open(folder / "trackio" / "media" / value["file_path"]) as picture:
            assert picture.size[0] >= 32 and len(picture.getcolors(10**6)) > 20
