"""The configuration of a run: file, overrides, and errors that name the field."""

import dataclasses
import re

import pytest
import yaml
from conftest import ROOT

from clip_koa.training.run_config import RunConfig, RunConfigError, parse_run_config


def test_the_command_line_overrides_the_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("epochs: 3\nlearning_rate: 2e-4\nsymmetry: false\n")
    config = parse_run_config(["--config", str(path), "--epochs", "5", "--consistency", "mse"])
    assert (config.epochs, config.learning_rate, config.symmetry, config.consistency) == (5, 2e-4, False, "mse")
    assert parse_run_config(["--symmetry", "no"]).symmetry is False


def test_the_resolved_config_gives_the_same_run(tmp_path):
    config = RunConfig(epochs=7, seed=3)
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert parse_run_config(["--config", str(path)]) == config


@pytest.mark.parametrize(
    "text, reason",
    [
        ("learning_rat: 1\nepoch: 2\n", "learning_rat, epoch"),
        ("epochs: many\n", "epochs='many'"),
        ("symmetry: perhaps\n", "true or false"),
        ("epochs: 0\n", "at least 1"),
        ("learning_rate: .nan\n", "learning_rate=nan"),
        ("warmup: 3\n", "at most 1"),
        ("consistency: cosine\n", "js, kl, mse"),
        ("prompts: none\n", "standard, ensemble"),
        ("batch_size: 10\ngradient_accumulation_steps: 3\n", "no multiple"),
        ("symmetry: no\nconsistency_weight: 0\none_view_until: 0.5\n", "one_view_until=0.5"),
        ("mirror_symmetric: yes\nrandom_flip: 0.5\n", "mirror_symmetric"),
        ("patch_dropout_until: 0.5\n", "patch_dropout is 0"),
        ("- a list\n", "field: value"),
        ("a: [\n", "not valid YAML"),
    ],
)
def test_wrong_configs_are_refused(tmp_path, text, reason):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(RunConfigError, match=reason):
        parse_run_config(["--config", str(path)])


def test_a_missing_file_is_refused():
    with pytest.raises(RunConfigError, match="no such file"):
        parse_run_config(["--config", "configs/missing.yaml"])


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_the_configs_that_come_with_the_project(path):
    parse_run_config(["--config", str(path)])
    header = path.read_text().split("\n\n")[0]
    assert re.search(rf"# .*(train|ablate)\.py --config configs/{path.name}", header), "the command that it is for"


def test_every_field_has_a_help_text_and_is_read():
    """No option that nothing reads."""
    code = "".join(path.read_text() for path in (ROOT / "clip_koa").rglob("*.py"))
    for option in dataclasses.fields(RunConfig):
        assert option.metadata["help"]
        assert re.search(rf"config\.{option.name}\b|self\.{option.name}\b", code), option.name


def test_yaml_is_plain():
    assert yaml.safe_load(RunConfig().to_yaml()) == dataclasses.asdict(RunConfig())
