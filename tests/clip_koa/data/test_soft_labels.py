"""Soft labels: a file knows X-rays by their pixels, and a run learns its shares in place of the grades."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from clip_koa.data.soft_labels import SHARES, SoftLabelsError, read_soft_labels, soft_label_table, xray_key
from clip_koa.training.recording import differences_from
from clip_koa.training.run_config import RunConfigError, parse_run_config, read_run_config
from dataset_script.knee_xray import load_knee_xray
from dataset_script.radiograph import read_radiograph
from dataset_script.synthetic import write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("soft-labels")
    for split, people in (("train", 20), ("validation", 4)):
        write_corpus(folder / split / "drawn", people, 5, 96, 0.3, split)
        (folder / split / "drawn" / split).rename(folder / split / "moved")
        for grade in (folder / split / "moved").iterdir():
            grade.rename(folder / split / grade.name)
        (folder / split / "moved").rmdir()
        (folder / split / "drawn").rmdir()
    return folder


@pytest.fixture(scope="module")
def split(corpus):
    return load_knee_xray(str(corpus))["train"]


def _keys(split, corpus):
    return [xray_key(read_radiograph(next(corpus.rglob(name.rsplit("/")[-1]))).image) for name in split["file"]]


@pytest.fixture
def write(tmp_path):
    def write(table):
        pq.write_table(table, tmp_path / "labels.parquet")
        return tmp_path / "labels.parquet"

    return write


def test_each_xray_gets_its_own_row_whatever_the_order(split, corpus, write):
    shares = np.random.default_rng(0).dirichlet(np.ones(5), len(split) + 3)
    keys = _keys(split, corpus) + ["0" * 64, "1" * 64, "f" * 64]  # X-rays of others do no harm
    table = soft_label_table(keys, shares)
    assert table["xray"].to_pylist() == sorted(keys)
    labels = read_soft_labels(write(table), split)
    assert labels.dtype == torch.float32 and labels.shape == (len(split), 5)
    np.testing.assert_allclose(labels.numpy(), shares[: len(split)], atol=1e-6)
    swapped = read_soft_labels(write(table), split.select(range(len(split) - 1, -1, -1)))
    assert torch.equal(swapped.flip(0), labels)


def test_what_is_no_file_of_soft_labels_says_why(split, corpus, write, tmp_path):
    keys, shares = _keys(split, corpus), np.full((len(split), 5), 0.2)
    with pytest.raises(SoftLabelsError, match="nowhere.parquet: it is no Parquet file"):
        read_soft_labels(tmp_path / "nowhere.parquet", split)
    (tmp_path / "text.parquet").write_text("no Parquet")
    with pytest.raises(SoftLabelsError, match="text.parquet: it is no Parquet file"):
        read_soft_labels(tmp_path / "text.parquet", split)
    with pytest.raises(
        SoftLabelsError, match="labels.parquet: it is no Parquet file with the columns xray and share_0 to share_4"
    ):
        read_soft_labels(write(soft_label_table(keys, shares).drop_columns(["share_4"])), split)
    missing = f"lacks 2 of the {len(split)} X-rays, such as .*\\.png: it knows X-rays by their pixels"
    with pytest.raises(SoftLabelsError, match=missing):
        read_soft_labels(write(soft_label_table(keys[2:], shares[2:])), split)
    for wrong in (0.3, -0.2, float("nan"), float("inf")):
        broken = shares.copy()
        broken[3, 0] = wrong
        with pytest.raises(SoftLabelsError, match="do not add up to 1"):
            read_soft_labels(write(soft_label_table(keys, broken)), split)
    texts = pa.table({"xray": keys, **{name: ["a"] * len(keys) for name in SHARES}})
    with pytest.raises(SoftLabelsError, match="shares that are no numbers"):
        read_soft_labels(write(texts), split)


def test_labels_are_softened_once():
    with pytest.raises(RunConfigError, match="a.parquet gives labels that are shared already"):
        parse_run_config(["--data.soft_labels", "a.parquet", "--losses.ordinal_smoothing", "0.5"])


def test_a_run_learns_the_shares(split, corpus, write, run_command, tmp_path):
    """Shares that are the grades train as the grades do; others do not; and a resume may not change them."""
    labels = np.array(split["label"])
    grades = write(soft_label_table(_keys(split, corpus), np.eye(5)[labels])).rename(tmp_path / "grades.parquet")
    even = write(soft_label_table(_keys(split, corpus), np.full((len(split), 5), 0.2)))
    command = ("train", "--data.corpus", corpus, "--optimisation.max_steps", 2, "--data.augmentation", 0)
    losses = {}
    for name, options in {
        "plain": (),
        "grades": ("--data.soft_labels", grades),
        "even": ("--data.soft_labels", even),
    }.items():
        run_command(*command, "--run.output_dir", tmp_path / name, *options)
        records = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [record["loss"] for record in records if record["kind"] == "train"]
    assert losses["grades"] == pytest.approx(losses["plain"], rel=1e-5)
    assert losses["even"] != pytest.approx(losses["plain"], rel=1e-2)
    command = (*command, "--run.output_dir", tmp_path / "even", "--resume", "latest")
    config, record = read_run_config(tmp_path / "even" / "config.yaml"), tmp_path / "even" / "run.json"

    def differences(labels) -> str:
        return "; ".join(differences_from(tmp_path / "even", config.changed({"data.soft_labels": str(labels)})))

    # A file is known by its content, wherever it lies.
    moved = tmp_path / "moved.parquet"
    moved.write_bytes(even.read_bytes())
    assert "data.soft_labels" in run_command(*command, "--data.soft_labels", grades, expect=2).stderr
    assert not differences(moved)
    even.write_bytes(grades.read_bytes())
    changed = "data.soft_labels: a file of SHA-256 .* -> .*labels.parquet of "
    assert re.search(changed, run_command(*command, "--data.soft_labels", even, expect=2).stderr)
    # A run of an earlier version does not tell it, and goes on with the path that it was given.
    run = json.loads(record.read_text())
    digest = run["data"].pop("soft_labels")
    record.write_text(json.dumps(run))
    assert "data.soft_labels" in differences(grades) and not differences(even)
    even.write_bytes(moved.read_bytes())
    run_command(*command, "--data.soft_labels", even)
    assert json.loads(record.read_text())["data"]["soft_labels"] == digest
