"""The configuration of a run: file, overrides, errors that name the field, and files of earlier versions."""

import itertools
import re
from collections import Counter

import pytest
import yaml
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from clip_koa.training.run_config import (
    FIELDS,
    OptimisationOptions,
    RunConfig,
    RunConfigError,
    parse_run_config,
    read_run_config,
)

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
# Fields that no file of configs/ sets, and why they are there.
NOT_IN_CONFIGS = {
    "run.checkpoint_steps": "long epochs on machines that may go away",
    "run.seed": "make released-training gives it",
    "losses.symmetry": "studies.ablation switches it off",
}


def _parse(tmp_path, text, *arguments):
    path = tmp_path / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape"))
    return parse_run_config(["--config", str(path), *arguments])


def test_the_command_line_overrides_the_file(tmp_path):
    text = "optimisation:\n  epochs: 3\n  learning_rate: 2e-4\nlosses:\n  symmetry: false\n"
    config = _parse(tmp_path, text, "--optimisation.epochs", "5", "--losses.consistency=mse", "--resume", "latest")
    optimisation, losses = config.optimisation, config.losses
    assert (optimisation.epochs, optimisation.learning_rate) == (5, 2e-4)
    assert (losses.symmetry, losses.consistency, config.resume) == (False, "mse", "latest")
    assert parse_run_config(["--losses.symmetry", "no"]).losses.symmetry is False
    assert parse_run_config([]) == RunConfig()


def test_the_resolved_config_gives_the_same_run(tmp_path):
    config = RunConfig().changed({"optimisation.epochs": 7, "run.seed": 3, "data.corpus": "synthetic:9"})
    assert config.optimisation == OptimisationOptions(epochs=7) and config.run.seed == 3
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert read_run_config(path) == config
    assert config.differences(RunConfig()) == ["run.seed: 0 -> 3", "optimisation.epochs: 8 -> 7"]  # X-rays by a digest


ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in itertools.pairwise("abcdefghij")
)


@pytest.mark.parametrize(
    "text, reason",
    [
        (
            "optimisation:\n  learning_rat: 1\n  epoch: 2\n",
            "unknown keys: 'optimisation.learning_rat', 'optimisation.e",
        ),
        ("optimisatio:\n  epochs: 3\n", "unknown keys: 'optimisatio.epochs'"),
        ("optimisation: 3\n", "unknown keys: 'optimisation'"),
        ("learning_rat: 1\n", "unknown keys: 'learning_rat'"),
        ("optimisation:\n  epochs: 2.7\n", "optimisation.epochs='2.7': it must be a whole number, at least 1"),
        ("optimisation:\n  epochs: many\n", "optimisation.epochs='many'"),
        ("losses:\n  symmetry: perhaps\n", "losses.symmetry='perhaps': it must be true or false"),
        ("losses:\n  symmetry: 1\n", "true or false"),
        ("optimisation:\n  epochs: 0\n", "at least 1"),
        ("optimisation:\n  learning_rate: .nan\n", "optimisation.learning_rate='.nan': it must be a finite number"),
        ("optimisation:\n  learning_rate: nan\n", "a finite number"),
        ("optimisation:\n  learning_rate: .inf\n", "a finite number"),
        ("optimisation:\n  learning_rate: 1e999\n", "finite"),
        ("optimisation:\n  learning_rate: -1e-5\n", "at least 0"),
        ("optimisation:\n  learning_rate: 1_0\n", "a finite number"),
        ("optimisation:\n  epochs: .inf\n", "optimisation.epochs='.inf': it must be a whole number"),
        ("run:\n  seed: 1.5\n", "run.seed='1.5': it must be a whole number"),
        ("run:\n  seed: 12345678901234567890123\n", "at most 4294967295"),
        ("optimisation:\n  epochs: 12345678901234567890123\n", "at most 2147483647"),
        (f"optimisation:\n  epochs: 1{'0' * 5000}\n", "a whole number"),
        ("optimisation:\n  epochs: 010\n", "a whole number"),
        ("optimisation:\n  batch_size: true\n", "optimisation.batch_size='true': it must be a whole number"),
        ("optimisation:\n  warmup: yes\n", "a finite number"),
        ("optimisation:\n  epochs: '3'\n", "line 2: optimisation.epochs='3': leave out the quotes"),
        ("epochs: '3'\n", "line 1: optimisation.epochs='3': leave out the quotes"),
        ("optimisation:\n  epochs: 3\n  epochs: 4\n", "line 3: 'optimisation.epochs' is given on line 2 too"),
        ("epochs: 3\nseed: 1\nepochs: 4\n", "line 3: 'epochs' is given on line 1 too"),
        ("epochs: 3\noptimisation:\n  epochs: 4\n", "line 3: optimisation.epochs is given on line 1 too"),
        ("run:\n  seed: 1\nrun:\n  seed: 1\n", "line 3: 'run' is given on line 1 too"),
        ("optimisation:\n  epochs:\n", "optimisation.epochs=''"),
        ("optimisation:\n  epochs: {a: 1}\n", "line 2: it must hold groups of `field: value` lines"),
        ("optimisation:\n  epochs: 3\n  warmup: [1]\n", "line 3: it must hold"),
        ("? {epochs: 3}\n: 4\n", "line 1: it must hold"),
        ("run:\n  seed: &three 3\noptimisation:\n  epochs: *three\n", "line 2: it must hold"),
        ("run: &run\n  seed: 3\n", "line 1: it must hold|line 2: it must hold"),
        ("<<: {epochs: 3}\n", "unknown keys: '<<.epochs'"),
        ("epochs: !!int 3\n", "line 1: it must hold"),
        ("model: !!python/object/apply:os.system [true]\n", "line 1: it must hold"),
        (ALIASES, "line 1: it must hold"),
        ("epochs: " + "[" * 100_000, "line 1: it must hold"),
        ("epochs: 3\n---\nepochs: 4\n", "line 3: it must hold"),
        ("epochs: 3\n--- text\n", "line 2: it must hold"),
        ("only text\n", "line 1: it must hold"),
        (
            "run:\n  output_dir: |\n    two\n    lines\n",
            r"run.output_dir='two\\nlines\\n': it must be text on one line",
        ),
        ('run:\n  output_dir: "a\\0b"\n', "on one line"),
        ("", "holds no field"),
        ("# epochs: 3\n", "holds no field"),
        ("\0", "not valid YAML"),
        (b"model: \xff\n", "byte 7 is no UTF-8"),
        (b"#" * (1 << 21), "larger than 1 MiB"),
        (f"run:\n  seed: 1\nx{'y' * 900}: 1\n", "unknown keys: 'xyyy"),
        ("optimisation:\n  warmup: 3\n", "at most 1"),
        ("losses:\n  consistency: cosine\n", "one of js, kl, mse"),
        ("model:\n  prompts: none\n", "one of standard, ensemble"),
        ("run:\n  best_metric: accuracy\n", "one of text.accuracy"),
        ("optimisation:\n  batch_size: 10\ncompute:\n  gradient_accumulation_steps: 3\n", "no multiple"),
        ("model:\n  lora_rank: 4\n  freeze_layers: 3\n", "leave model.freeze_layers at 0"),
        ("losses: {symmetry: no, consistency_weight: 0, one_view_until: 0.5}\n", "losses.one_view_until=0.5"),
        ("- a list\n", "field: value"),
        ("a: [\n", "it must hold|not valid YAML"),
        ("a: b: c\n", "not valid YAML: line 1: mapping values"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_configs_are_refused_in_a_line(tmp_path, text, reason):
    with pytest.raises(RunConfigError, match=reason) as refused:
        _parse(tmp_path, text)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 700


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--optimisation.epochs", "2.7"), "optimisation.epochs='2.7': it must be a whole number"),
        (("--learning_rate", "1e-4"), "'--learning_rate' is no field: did you mean --optimisation.learning_rate"),
        (("--optimisation.learning_rat=1",), "did you mean --optimisation.learning_rate"),
        (("--data_dir", "knees"), "'--data_dir' is no field: did you mean --data.corpus"),
        (("--patience", "3"), "'--patience' is no field: `--help` lists the fields"),
        (("--optimisation", "{epochs: 3}"), "is no field"),
        (("knees",), "'knees' is no field"),
        (("--optimisation.epochs",), "expected one argument"),
        (("--config",), "expected one argument"),
        (("--optim", "3"), "is no field"),
    ],
)
def test_wrong_command_lines_are_refused_in_a_line(arguments, reason):
    with pytest.raises(RunConfigError, match=reason) as refused:
        parse_run_config(list(arguments))
    assert "\n" not in str(refused.value)


@given(st.recursive(st.text() | st.integers() | st.floats() | st.booleans() | st.none(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)),
       st.sampled_from(sorted(FIELDS)), st.booleans())  # fmt: skip
def test_whatever_a_field_holds_is_of_its_type_or_refused_in_a_line(tmp_path_factory, value, name, by_file):
    """A value that is taken is the one that was given."""
    try:
        if by_file:
            group, field = name.split(".")
            path = tmp_path_factory.mktemp("any") / "run.yaml"
            path.write_text(yaml.safe_dump({group: {field: value}}))
            got = read_run_config(path).values()[name]
        else:
            got = parse_run_config([f"--{name}={value}"]).values()[name]
    except RunConfigError as refused:
        assert "\n" not in str(refused)
        return
    assert type(got) is FIELDS[name].type
    if FIELDS[name].type is not str:
        assert got == value or (not by_file and str(value).lower() in ("true", "false", "yes", "no", "on", "off")) or (
            isinstance(value, str) and not by_file and float(value) == got
        )  # fmt: skip
    elif not by_file:
        assert got == str(value)


@given(st.integers(0, 2**32 - 1), st.floats(0, 1e300), st.booleans(),
       st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\udcff'\"#: ")))  # fmt: skip
def test_what_a_run_keeps_of_its_configuration_is_read_back(tmp_path_factory, seed, rate, symmetry, corpus):
    changes = {"run.seed": seed, "optimisation.learning_rate": rate, "losses.symmetry": symmetry}
    config = RunConfig().changed({**changes, "data.corpus": corpus})
    path = tmp_path_factory.mktemp("kept") / "config.yaml"
    path.write_bytes(config.to_yaml().encode())
    assert read_run_config(path) == config


def test_the_words_of_yaml_that_are_words_of_ours(tmp_path):
    text = (
        "compute: {mixed_precision: no}\ndata: {corpus: 2024}\noptimisation: {learning_rate: 1e-5, warmup: 0}\nrun:\n"
    )
    config = _parse(tmp_path, text)
    assert (config.compute.mixed_precision, config.data.corpus) == ("no", "2024")
    assert (config.optimisation.learning_rate, config.optimisation.warmup) == (1e-5, 0.0)
    assert type(config.optimisation.warmup) is float
    assert _parse(tmp_path, "data:\n  corpus: ~\n").data.corpus == ""


def test_a_missing_file_is_refused():
    with pytest.raises(RunConfigError, match="no such file"):
        parse_run_config(["--config", "configs/missing.yaml"])


# As today's runs/demo/config.yaml was before fields had groups.
FLAT = """\
output_dir: runs/demo
resume: latest
checkpoint_steps: 0
keep_checkpoints: 4
log_steps: 1
trackers: ''
evaluate_test: true
best_metric: text_flip_averaged.accuracy
evaluation_epochs: 1
patience: 0
seed: 0
data_dir: ''
synthetic_people: 1000
class_balance: 0.0
augmentation: 0.2
random_flip: 0.0
num_workers: 0
model: tiny
image_size: 0
prompts: ensemble
freeze_layers: 0
mirror_symmetric: false
lora_rank: 0
drop_path: 0.0
patch_dropout: 0.0
patch_dropout_until: 1.0
symmetry: true
consistency: kl
consistency_weight: 2.0
one_view_until: 0.0
classifier_weight: 1.0
label_smoothing: 0.0
ordinal_smoothing: 0.0
epochs: 12
max_steps: 0
batch_size: 32
learning_rate: 0.001
new_learning_rate: 0.001
layer_decay: 1.0
scale_rates: false
weight_decay: 0.05
warmup: 0.1
max_grad_norm: 1.0
ema_decay: 0.0
gradient_accumulation_steps: 1
gradient_checkpointing: false
mixed_precision: 'no'
"""


def test_a_run_folder_from_before_fields_had_groups_is_read(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(FLAT)
    assert read_run_config(path) == read_run_config(ROOT / "configs/demo.yaml")
    assert read_run_config(path).resume == "latest"
    path.write_text(
        FLAT.replace("synthetic_people: 1000", "synthetic_people: 0").replace("data_dir: ''", "data_dir: a")
    )
    assert read_run_config(path).data.corpus == "a"


@pytest.mark.parametrize(
    "line", ["mirror_symmetric: true", "patience: 8", "label_smoothing: 0.05", "image_size: 308", "weight_decay: x"]
)
def test_what_is_gone_is_refused_where_it_was_used(tmp_path, line):
    name, value = line.split(": ")
    text = re.sub(f"^{name}: .*$", line, FLAT, flags=re.M)
    with pytest.raises(RunConfigError, match=f"run.yaml: {name}='{value}': this field is gone, .* as with .*Leave it"):
        _parse(tmp_path, text)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_configs_that_come_with_the_project(path):
    parse_run_config(["--config", str(path)])
    header = path.read_text().split("\n\n")[0]
    assert re.search(rf"# .*(train\.py|clip-koa train|-m studies\.ablation) --config configs/{path.name}", header), (
        "the command that it is for"
    )
    assert set(yaml.safe_load(path.read_text())) <= {name.split(".")[0] for name in FIELDS}


def test_every_field_is_explained_set_by_a_config_or_needed_and_read():
    """No option that nothing sets or reads, and few of them."""
    code = "".join(path.read_text() for path in (ROOT / "clip_koa").rglob("*.py"))
    given = [yaml.safe_load(path.read_text()) for path in CONFIGS]
    assert len(FIELDS) <= 33
    for name, option in FIELDS.items():
        group, field = name.split(".")
        assert option.metadata["help"]
        assert any(field in config.get(group, {}) for config in given) != (name in NOT_IN_CONFIGS), name
        assert re.search(rf"\b(config\.{group}|{group}|losses|options|optimisation)\.{field}\b", code), name


def test_defaults_are_what_most_configs_use():
    """Of those that begin anew: the others keep to the recipe of their start. Where all differ, one of all must."""
    resolved = [read_run_config(path).values() for path in CONFIGS]
    anew = [values for values in resolved if not values["model.start"].startswith(("models/", "runs/"))]
    for name, option in FIELDS.items():
        if option.metadata["recipe"]:
            counts = Counter(values[name] for values in anew)
            if max(counts.values()) == 1:
                assert option.default in [values[name] for values in resolved], name
            else:
                assert counts[option.default] == max(counts.values()), (name, counts)


def test_help_lists_every_field_with_its_default(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_run_config(["--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and max(map(len, text.splitlines())) <= 100
    words = " ".join(text.split())
    for name, option in FIELDS.items():
        assert f"--{name} " in words
        assert f"(default: {option.default!r})" in words
    assert all(f"\n{group}:\n" in text for group in ("run", "data", "model", "losses", "optimisation", "compute"))


def test_yaml_is_plain():
    groups = yaml.safe_load(RunConfig().to_yaml())
    assert {f"{group}.{name}": value for group, fields in groups.items() for name, value in fields.items()} == (
        RunConfig().values()
    )
