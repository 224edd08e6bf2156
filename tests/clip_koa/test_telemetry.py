"""Nobody is told over the network that a library is used."""

import json

import pytest

LIBRARIES = ("gradio", "nncf", "onnxruntime", "openvino", "ray")


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_keeps_no_report_for_its_makers(library, run_python, tmp_path):
    """ONNX Runtime would write a number of this machine, and what it is to send, once it is imported."""
    pytest.importorskip(library)
    home = tmp_path / "home"
    run_python("-c", f"import clip_koa, {library}", HOME=str(home))
    kept = [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]
    assert [name for name in kept if "matplotlib" not in name] == []


def test_who_sets_a_variable_himself_is_obeyed(run_python):
    names = ("ORT_DISABLE_TELEMETRY", "RAY_USAGE_STATS_ENABLED", "GRADIO_ANALYTICS_ENABLED")
    program = f"import clip_koa, json, os; print(json.dumps([os.environ[name] for name in {names}]))"
    assert json.loads(run_python("-c", program).stdout) == ["1", "0", "False"]
    assert json.loads(run_python("-c", program, RAY_USAGE_STATS_ENABLED="1").stdout) == ["1", "1", "False"]
