"""`clip-koa grade --ray`: the rows of one machine, each X-ray once, whatever happens to the machines of a cluster."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet
import pytest

from clip_koa.commands import main
from clip_koa.grading.grade_table import read_rows
from clip_koa.training.checkpoints import save_model_folder
from dataset_script.synthetic import draw_knee

ray = pytest.importorskip("ray", reason="needs the extra `ray`")
from clip_koa.grading import cluster, pool  # noqa: E402

SIDE = 32  # pixels


@pytest.fixture(scope="module")
def model(tiny_start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    save_model_folder(folder, tiny_start.model, tiny_start.image_processor, tiny_start.tokenizer)
    return folder


def _draw(folder: Path, count: int, every_broken: int) -> Path:
    """Drawn knees, of which each so-and-so-manieth is broken."""
    folder.mkdir()
    for number in range(count):
        file = folder / f"{9000000 + number}{'LR'[number % 2]}.png"
        if number % every_broken == every_broken - 1:
            file.write_bytes(b"no image")
        else:
            draw_knee(number % 5, "LR"[number % 2], number, SIDE).save(file)
    return folder


def _tell(capsys, *arguments) -> str:
    """The one line that a refused command says."""
    assert main(["grade", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_is_refused_before_a_cluster_is_joined(tmp_path, capsys, model):
    draw_knee(1, "L", 1, SIDE).save(tmp_path / "a.png")
    output = ("--output", tmp_path / "grades")
    to = ("--model", model, tmp_path / "a.png")
    assert "--output names the table or folder" in _tell(capsys, "--ray", "local", *to)
    assert "a cluster writes rows alone" in _tell(capsys, "--ray", "local", "--explain", tmp_path / "m", *output, *to)
    assert "--cores 2 is for --ray alone" in _tell(capsys, "--cores", 2, *output, *to)
    for address in ("here", "ray://head:10001", "head:port"):
        assert f"--ray {address}: give local, auto, or the HOST:PORT" in _tell(capsys, "--ray", address, *output, *to)
    with socket.socket() as silent:  # bound, but it does not listen
        silent.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert f"--ray {address}: nothing answers there" in _tell(capsys, "--ray", address, *output, *to)


def _machine(node: str, cpu: float, gpu: float = 0, alive: bool = True) -> dict:
    return {
        "NodeID": node,
        "NodeManagerHostname": f"host-{node}",
        "Alive": alive,
        "Resources": {"CPU": cpu, "GPU": gpu} if cpu else {},
    }


@pytest.mark.parametrize(
    "nodes, cores, told",
    [
        (
            [_machine("a", 0), _machine("b", 0.5), _machine("c", 8, alive=False)],
            None,
            "no machine .* has a whole core",
        ),
        ([_machine("a", 2), _machine("b", 1.5)], 4, "has 3 cores, fewer than the 4 of --cores"),
        ([_machine("a", 2)], None, "no core became free within"),
        ([_machine("a", 2, 1)], None, "no GPU and core became free within"),
        ([_machine("a", 2, 1)], 2, "no core became free within"),
    ],
)
def test_a_cluster_that_is_too_small_or_taken_is_told(monkeypatch, nodes, cores, told):
    monkeypatch.setattr(cluster.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(cluster, "placement_group", lambda *_, **__: SimpleNamespace(wait=lambda seconds: False))
    monkeypatch.setattr(cluster, "remove_placement_group", lambda _: None)
    with pytest.raises(cluster.ClusterError, match=told):
        cluster.check_size("local", cores)


@pytest.mark.parametrize("cores", [1, 2, 7])
def test_processes_leave_room_for_those_that_read(cores):
    """On a machine all of whose cores grade: neither waits for the other's core, so that nothing locks up."""
    assert cores - cores * cluster.CORE >= cluster.READING - 1e-9


class _Table(SimpleNamespace):
    """What a pool asks of a table."""


def test_a_batch_that_ends_its_process_is_taken_apart_until_the_one_to_blame_is_known(monkeypatch):
    """The others of the batch are graded, and the file is a row with its reason."""
    monkeypatch.setattr(pool.ray, "kill", lambda actor: None)
    files = [f"{number}.png" for number in range(5)]
    of = object.__new__(pool.Pool)
    of._again, of._looked = pool.deque([pool._Batch([0, 1, 2]), pool._Batch([3, 4])]), 0.0
    of._table = _Table(files=files, paired=SimpleNamespace(firsts={"3.png"}))
    graded, refused = [], []
    while of._again:
        work = {object(): of._again.popleft()}
        if of._again:
            work[object()] = of._again.popleft()
        process = pool._Process(None, None, None, work)
        of._processes = [process]
        at_work = next(iter(work.values()))
        if 1 in at_work.numbers:  # this X-ray ends whatever reads it
            refused += of._lost(process, next(iter(work)), is_gone=True)
            assert not of._processes
        else:
            graded += at_work.numbers
            of._again.extend(list(work.values())[1:])
    assert sorted(graded) == [0, 2, 3, 4]
    (((waiting,), ((row,),)),) = refused
    assert waiting.number == 1 and row["file"] == "1.png" and row["error"].startswith("1.png: the process that read")


def test_a_machine_that_would_grade_otherwise_is_refused():
    of = object.__new__(pool.Pool)
    of._loaded = None
    process = SimpleNamespace(machine=cluster.Machine("a", "host-a", 1, 0))
    first = pool.Loaded("model=01 precision=fp32", True, "auto")
    of._check_same(process, first)
    of._check_same(process, first)
    with pytest.raises(cluster.ClusterError, match="host-a would grade otherwise .* model=02"):
        of._check_same(process, pool.Loaded("model=02 precision=fp32", True, "auto"))


@pytest.mark.slow
def test_a_machine_dies_and_joins_again(model, tmp_path, capsys):
    """Two machines of one core each; 2,000 X-rays, 20 of them broken."""
    from ray.cluster_utils import Cluster

    xrays = _draw(tmp_path / "xrays", 2000, every_broken=100)
    command = ("grade", "--model", model, "--framing", "as_is")
    two = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        dying = two.add_node(num_cpus=1)
        on_cluster = (*command, "--ray", two.address, "--output", tmp_path / "many", xrays)
        assert main([*on_cluster, "--cores", "3"]) == 2
        assert "this cluster has 2 cores, fewer than the 3 of --cores" in capsys.readouterr().err
        with open(tmp_path / "printed.txt", "w") as printed:
            run = subprocess.Popen(
                [sys.executable, "-m", "clip_koa", *map(str, on_cluster)], stdout=printed, stderr=printed
            )
        rows = tmp_path / "many" / ".grades.parquet.rows"
        _wait_for(rows, 200, run)
        two.remove_node(dying, allow_graceful=False)
        _wait_for(rows, 600, run)
        two.add_node(num_cpus=1)
        assert run.wait() == 1, (tmp_path / "printed.txt").read_text()
        assert "1980 X-rays graded, 20 not." in (tmp_path / "printed.txt").read_text()
        # Again: only what has no grade is tried.
        again = subprocess.run(
            [sys.executable, "-m", "clip_koa", *map(str, on_cluster)], capture_output=True, text=True
        )
        assert again.returncode == 1 and "(1980 of them before, 0 again" in again.stdout, again.stderr
    finally:
        two.shutdown()
    many = pyarrow.parquet.read_table(tmp_path / "many").to_pylist()
    assert [row["file"] for row in many] == [str(file) for file in sorted(xrays.iterdir())]
    assert main([*command, "--output", tmp_path / "one.parquet", xrays]) == 1
    one = list(read_rows(tmp_path / "one.parquet", ".parquet"))
    assert many == one  # in every figure
    assert sum(row["error"] is not None for row in many) == 20


@pytest.mark.slow
def test_who_stops_it_keeps_the_rows(model, tmp_path, capsys):
    xrays, table = _draw(tmp_path / "xrays", 400, every_broken=400), tmp_path / "grades.jsonl"
    command = (
        "grade",
        "--model",
        model,
        "--framing",
        "as_is",
        "--ray",
        "local",
        "--cores",
        1,
        "--output",
        table,
        xrays,
    )
    with open(tmp_path / "printed.txt", "w") as printed:
        run = subprocess.Popen([sys.executable, "-m", "clip_koa", *map(str, command)], stdout=printed, stderr=printed)
    _wait_for(tmp_path / ".grades.jsonl.rows", 16, run)
    run.terminate()
    assert run.wait() == 75
    assert "stopped by SIGTERM. The X-rays graded so far are kept" in (tmp_path / "printed.txt").read_text()
    kept = (tmp_path / ".grades.jsonl.rows").read_bytes().count(b"\n")
    assert main(command) == 1 and f"399 X-rays graded ({kept} of them before" in capsys.readouterr().out
    assert [row["file"] for row in read_rows(table, ".jsonl")] == [str(file) for file in sorted(xrays.iterdir())]


def _wait_for(rows: Path, count: int, run: subprocess.Popen) -> None:
    while not rows.exists() or rows.read_bytes().count(b"\n") < count:
        assert run.poll() is None, "it ended before"
        time.sleep(0.1)


@pytest.mark.slow
def test_objects_of_a_store_on_a_cluster(model, tmp_path, monkeypatch):
    """From an S3 server on the loopback: the rows of the same files."""
    server = pytest.importorskip("moto.server", reason="needs moto")
    pytest.importorskip("s3fs", reason="needs the extra `s3`")
    import s3fs

    for name, value in {"ACCESS_KEY_ID": "testing", "SECRET_ACCESS_KEY": "testing", "REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    xrays = _draw(tmp_path / "xrays", 40, every_broken=20)
    s3 = server.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    s3.start()
    try:
        host, port = s3.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        store = s3fs.S3FileSystem()
        store.mkdir("hospital")
        store.put(f"{xrays}/*", "hospital/knees/")
        s3fs.S3FileSystem.clear_instance_cache()
        command = ("grade", "--model", model, "--framing", "as_is")
        assert (
            main([*command, "--ray", "local", "--cores", "1", "--output", tmp_path / "s3.csv", "s3://hospital"]) == 1
        )
        assert main([*command, "--output", tmp_path / "here.csv", xrays]) == 1
    finally:
        s3.stop()
    far, here = (list(read_rows(tmp_path / name, ".csv")) for name in ("s3.csv", "here.csv"))
    assert [row["file"] for row in far] == [f"s3://hospital/knees/{os.path.basename(row['file'])}" for row in here]
    for one, other in zip(far, here, strict=True):
        differing = {name for name in one if one[name] != other[name]}
        assert differing <= {"file", "file_modified", "error"} and (one["error"] is None) == (other["error"] is None)
    assert sum(row["error"] is not None for row in far) == 2
