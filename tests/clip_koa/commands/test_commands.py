"""`clip-koa`: every subcommand is there, loads no more than it needs, and runs where no checkout is."""

import ast
import os
import shutil
import subprocess
import sys
from importlib import import_module
from typing import get_args

import pytest
from conftest import ROOT

from clip_koa.commands import COMMANDS, main

FOLDER = ROOT / "clip_koa" / "commands"
HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "numpy",
    "matplotlib",
    "sklearn",
    "accelerate",
    "gradio",
    "huggingface_hub",
)


def test_each_command_is_a_small_file_of_its_own():
    files = {path.stem: path for path in FOLDER.glob("*.py")}
    assert set(files) - {"__init__", "options"} == {name.replace("-", "_") for name in COMMANDS}
    for name in COMMANDS:
        path = files[name.replace("-", "_")]
        assert len(path.read_text().splitlines()) < 60, path
        assert not [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Try)], path


@pytest.mark.parametrize("name", [path.name for path in sorted(ROOT.glob("*.py"))])
def test_the_scripts_at_the_root_are_a_few_lines(name):
    assert name in {"app.py", "predict.py", "push_to_hub.py", "train.py"}
    assert len((ROOT / name).read_text().splitlines()) <= 10


def test_help_is_quick_and_tells_the_statuses(run_python):
    program = (
        "import sys; from clip_koa.commands import main; main(['--help']); "
        f"print('loaded', [name for name in {HEAVY} if name in sys.modules])"
    )
    printed = run_python("-c", program).stdout
    assert printed.splitlines()[-1] == "loaded []"
    for word in (*COMMANDS, "--install-completion", "0   done", "1   done, but", "2   nothing", "75  stopped"):
        assert word in printed
    assert "..." not in printed.split("Commands:")[1]  # no summary is cut


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(name, capsys):
    assert main([name, "--help"]) == 0
    assert f"clip-koa {name}" in capsys.readouterr().out or name == "train"  # whose parser is that of a run


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["grad", "x.png"], "No such command 'grad'"),
        (["grade"], "Missing argument"),
        (["grade", "--levle", "0.5", "x.png"], "No such option"),
        (["grade", "--backend", "tensorflow", "x.png"], "tensorflow"),
        (["page", "--max-visitors", "0"], "max_visitors"),
        (["calibrate", "--model", "configs", "--level", "0.2"], "--level 0.2: it must be at least 0.5"),
        (["split", "nowhere"], "--output"),
        (["draw"], "--output"),
    ],
)
def test_wrong_use_ends_with_2(arguments, told, capsys):
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert told in shown.err and "Traceback" not in shown.err


def test_choices_are_those_of_the_rooms():
    from clip_koa.commands import evaluate, grade
    from clip_koa.evaluation.heads import HEADS
    from clip_koa.grading.backends import BACKENDS
    from clip_koa.grading.precision import PRECISIONS
    from clip_koa.publishing.release import DTYPES

    publish = import_module("clip_koa.commands.publish")
    assert get_args(grade.Backend) == BACKENDS and get_args(grade.Precision) == PRECISIONS
    assert get_args(evaluate.Head) == HEADS and get_args(publish.Dtype) == tuple(DTYPES)


def test_an_option_may_be_written_with_hyphens(capsys):
    for option in ("--keep-polarity", "--keep_polarity"):
        assert main(["grade", option, "nowhere.png"]) == 2
        assert "nowhere.png: there is no such file" in capsys.readouterr().err


def test_a_shell_completes_commands_and_options(run_python):
    words = {"gr": "grade", "grade --exp": "--explain", "evaluate --second": "--second_head"}
    for typed, completed in words.items():
        shell = {"COMP_WORDS": f"clip-koa {typed}", "COMP_CWORD": str(len(typed.split()))}
        result = run_python("-m", "clip_koa", **shell, _CLIP_KOA_COMPLETE="complete_bash")
        assert result.stdout.split() == [completed]


def test_commands_of_the_corpus_take_its_own_options(tmp_path, capsys):
    assert main(["draw", "--output", tmp_path / "knees", "--people", 6, "--image_size", 64, "--split", "train"]) == 0
    assert main(["split", tmp_path / "knees", "--output", tmp_path / "a.csv", "--shares", ".4", ".3", ".3"]) == 0
    assert main(["audit", tmp_path / "a.csv"]) in (0, 1)
    assert main(["export-corpus", tmp_path / "a.csv", tmp_path / "out", "--keep_person_ids"]) == 0
    capsys.readouterr()
    assert main(["audit", tmp_path / "nowhere"]) == 2
    assert capsys.readouterr().err.startswith(f"clip-koa audit: {tmp_path}/nowhere: ")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package as pip puts it down, without the checkout around it."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("clip_koa", "dataset_script", "metrics", "modeling_clip_koa"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--no-warn-conflicts")
    subprocess.run([sys.executable, *pip, "--target", str(target), str(source)], check=True, capture_output=True)
    return target


@pytest.mark.slow
def test_an_installed_package_without_the_checkout(installed, tmp_path):
    def run(*arguments, expect=0) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        command = [sys.executable, str(installed / "bin" / "clip-koa"), *map(str, arguments)]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == expect, result.stdout + result.stderr
        return result

    assert run("--help").stdout.count("  grade ") == 1
    run("draw", "--output", tmp_path / "knees", "--people", 1, "--image_size", 64)
    for command in (("grade", "knees"), ("page",)):
        told = run(*command, expect=2).stderr.splitlines()
        assert told == [
            f"clip-koa {command[0]}: no released model lies beside the code: name one by --model, a model folder or a "
            "Hub id."
        ]
    xrays = [ROOT / "examples" / f"kl2_{side}.png" for side in ("left", "right")]
    printed = run("grade", "--model", ROOT / "models" / "clip-koa-small", "--framing", "as_is", *xrays).stdout
    assert printed.count(".png") == 2 and "not for diagnosis" in printed
