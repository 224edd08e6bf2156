"""The configuration of a run: file, overrides, and errors that name the field."""

import dataclasses
import itertools
import re

import pytest
import yaml
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

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


ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in itertools.pairwise("abcdefghij")
)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("learning_rat: 1\nepoch: 2\n", "unknown keys: 'learning_rat', 'epoch'"),
        ("epochs: many\n", "epochs='many'"),
        ("symmetry: perhaps\n", "true or false"),
        ("symmetry: 1\n", "true or false"),
        ("epochs: 0\n", "at least 1"),
        ("learning_rate: .nan\n", "learning_rate='.nan': it must be a finite number"),
        ("learning_rate: nan\n", "a finite number"),
        ("learning_rate: .inf\n", "learning_rate='.inf': it must be a finite number"),
        ("learning_rate: 1e999\n", "finite"),
        ("epochs: .inf\n", "epochs='.inf': it must be a whole number"),
        ("seed: 1.5\n", "seed='1.5': it must be a whole number"),
        ("seed: 12345678901234567890123\n", "seed=12345678901234567890123: it must be at most 4294967295"),
        ("epochs: 12345678901234567890123\n", "at most 2147483647"),
        (f"epochs: 1{'0' * 5000}\n", "a whole number"),
        ("epochs: 010\n", "a whole number"),
        ("batch_size: true\n", "batch_size='true': it must be a whole number"),
        ("warmup: yes\n", "a finite number"),
        ("epochs: '3'\n", "line 1: epochs='3': leave out the quotes"),
        ("epochs: 3\nseed: 1\nepochs: 4\n", "line 3: 'epochs' is given on line 1 too"),
        ("epochs:\n", "epochs=''"),
        ("epochs: {a: 1}\n", "line 1: it must hold `field: value` lines"),
        ("epochs: 3\nseed: [1]\n", "line 2: it must hold `field: value` lines"),
        ("? {epochs: 3}\n: 4\n", "line 1: it must hold"),
        ("epochs: &three 3\nseed: *three\n", "line 1: it must hold"),
        ("<<: {epochs: 3}\n", "line 1: it must hold"),
        ("epochs: !!int 3\n", "line 1: it must hold"),
        ("model: !!python/object/apply:os.system [true]\n", "line 1: it must hold"),
        (ALIASES, "line 1: it must hold"),
        ("epochs: " + "[" * 100_000, "line 1: it must hold"),
        ("epochs: 3\n---\nepochs: 4\n", "line 3: it must hold"),
        ("epochs: 3\n--- text\n", "line 2: it must hold"),
        ("only text\n", "line 1: it must hold"),
        ("output_dir: |\n  two\n  lines\n", "on one line"),
        ('output_dir: "a\\0b"\n', "on one line"),
        ("", "holds no field"),
        ("# epochs: 3\n", "holds no field"),
        ("\0", "not valid YAML"),
        (b"model: \xff\n", "byte 7 is no UTF-8"),
        (b"#" * (1 << 21), "larger than 1 MiB"),
        (f"model: tiny\nx{'y' * 900}: 1\n", "unknown keys: 'xyyy"),
        ("warmup: 3\n", "at most 1"),
        ("consistency: cosine\n", "js, kl, mse"),
        ("prompts: none\n", "standard, ensemble"),
        ("batch_size: 10\ngradient_accumulation_steps: 3\n", "no multiple"),
        ("symmetry: no\nconsistency_weight: 0\none_view_until: 0.5\n", "one_view_until=0.5"),
        ("mirror_symmetric: yes\nrandom_flip: 0.5\n", "mirror_symmetric"),
        ("patch_dropout_until: 0.5\n", "patch_dropout is 0"),
        ("- a list\n", "field: value"),
        ("a: [\n", "it must hold|not valid YAML"),
        ("a: b: c\n", "not valid YAML: line 1: mapping values"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_configs_are_refused_in_a_line(tmp_path, text, reason):
    path = tmp_path / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RunConfigError, match=reason) as refused:
        parse_run_config(["--config", str(path)])
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


@given(st.recursive(st.text() | st.integers() | st.floats() | st.booleans() | st.none(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)),
       st.sampled_from(dataclasses.fields(RunConfig)), st.booleans())  # fmt: skip
def test_whatever_a_field_holds_is_of_its_type_or_refused_in_a_line(tmp_path_factory, value, option, by_file):
    """A value that is taken is the one that was given."""
    try:
        if by_file:
            path = tmp_path_factory.mktemp("any") / "run.yaml"
            path.write_text(yaml.safe_dump({option.name: value}))
            got = getattr(parse_run_config(["--config", str(path)]), option.name)
        else:
            got = getattr(RunConfig(**{option.name: value}), option.name)
    except RunConfigError as refused:
        assert "\n" not in str(refused)
        return
    assert type(got) is option.type or (option.type is float and type(got) is int)
    assert got == value or (got == "" and value is None) or (option.type is str and by_file)


@given(st.builds(
    RunConfig, seed=st.integers(0, 2**32 - 1), learning_rate=st.floats(0, 1e300), symmetry=st.booleans(),
    data_dir=st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\udcff'\"#: ")),
))  # fmt: skip
def test_what_a_run_keeps_of_its_configuration_is_read_back(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("kept") / "config.yaml"
    path.write_bytes(config.to_yaml().encode())
    assert parse_run_config(["--config", str(path)]) == config


def test_the_words_of_yaml_that_are_words_of_ours(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("mixed_precision: no\ntrackers: ~\ndata_dir: 2024\nlearning_rate: 1e-5\nwarmup: 0\n")
    config = parse_run_config(["--config", str(path)])
    assert (config.mixed_precision, config.trackers, config.data_dir) == ("no", "", "2024")
    assert (config.learning_rate, config.warmup) == (1e-5, 0.0)


def test_a_missing_file_is_refused():
    with pytest.raises(RunConfigError, match="no such file"):
        parse_run_config(["--config", "configs/missing.yaml"])


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_the_configs_that_come_with_the_project(path):
    parse_run_config(["--config", str(path)])
    header = path.read_text().split("\n\n")[0]
    assert re.search(rf"# .*(python train\.py|-m studies\.ablation) --config configs/{path.name}", header), (
        "the command that it is for"
    )


def test_every_field_has_a_help_text_and_is_read():
    """No option that nothing reads."""
    code = "".join(path.read_text() for path in (ROOT / "clip_koa").rglob("*.py"))
    for option in dataclasses.fields(RunConfig):
        assert option.metadata["help"]
        assert re.search(rf"config\.{option.name}\b|self\.{option.name}\b", code), option.name


def test_yaml_is_plain():
    assert yaml.safe_load(RunConfig().to_yaml()) == dataclasses.asdict(RunConfig())
