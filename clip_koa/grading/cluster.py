"""A Ray cluster: joining it, its machines, and what of them a process that grades takes."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray.util import placement_group, remove_placement_group

from modeling_clip_koa import CLIPKOAError

# Of the core that a process which grades has, a tenth is left to the tasks that read. So they always find room, on
# machines whose cores all grade too, and neither waits for the other.
CORE = 0.9
READING = 0.1
_PATIENCE = 30  # seconds that a core may take to be free


class ClusterError(CLIPKOAError, RuntimeError):
    """A cluster that cannot be joined, is too small, or cannot grade; the message says which and why."""


@dataclass(frozen=True)
class Machine:
    """A machine of the cluster that has room: its id, name, whole cores, and GPUs."""

    node: str
    name: str
    cores: int
    gpus: int


@contextmanager
def joined(address: str) -> Iterator[None]:
    """Within it this process is a driver of the cluster.

    Args:
        address: host and port of a cluster's head; auto: the cluster that this machine is in; local: one is started
            here and ends with the block.

    Raises:
        ClusterError: there is none, or one of another version.
    """
    host, _, port = address.rpartition(":")
    if "/" in address or not (address in ("local", "auto") or (host and port.isdecimal())):
        raise ClusterError(
            f"--ray {address}: give local, auto, or the HOST:PORT of a cluster's head, on a machine of that cluster."
        )
    if host:
        _knock(address, host, int(port))
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray ends a process that reads once it has waited for a second, and the next one takes longer to start.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init("local", **quiet) if address == "local" else ray.init(address, **_but(quiet, "include_dashboard"))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ClusterError(f"--ray {address}: no cluster could be joined: {reason}") from error
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, handler)  # Ray sets its own, which would not keep the exit status
    try:
        yield
    finally:
        ray.shutdown()


def _but(options: dict, name: str) -> dict:
    return {key: value for key, value in options.items() if key != name}


def _knock(address: str, host: str, port: int) -> None:
    """Ray itself tries for minutes."""
    try:
        socket.create_connection((host, port), timeout=10).close()
    except OSError as error:
        raise ClusterError(
            f"--ray {address}: nothing answers there ({error}): start it by ray start --head."
        ) from error


def machines() -> list[Machine]:
    """The machines of the cluster that are there now and have at least one whole core."""
    found = []
    for node in ray.nodes():
        has = node["Resources"]
        if node["Alive"] and has.get("CPU", 0) >= 1:
            found.append(Machine(node["NodeID"], node["NodeManagerHostname"], int(has["CPU"]), int(has.get("GPU", 0))))
    return found


def check_size(address: str, cores: int | None) -> bool:
    """Whether GPUs grade: where there are any, and no cores are asked for.

    Raises:
        ClusterError: no machine has a whole core, there are fewer than `cores`, or no core or GPU becomes free.
    """
    there = machines()
    total = sum(machine.cores for machine in there)
    on_gpus = cores is None and any(machine.gpus for machine in there)
    if not there:
        raise ClusterError(f"--ray {address}: no machine of this cluster has a whole core, which grading needs.")
    if cores is not None and total < cores:
        raise ClusterError(f"--ray {address}: this cluster has {total} cores, fewer than the {cores} of --cores.")
    room = placement_group([resources(on_gpus), {"CPU": READING}], strategy="STRICT_PACK")
    try:
        if not room.wait(_PATIENCE):
            what = "GPU and core" if on_gpus else "core"
            raise ClusterError(
                f"--ray {address}: no {what} became free within {_PATIENCE} s: other work holds all. Try again later."
            )
    finally:
        remove_placement_group(room)
    return on_gpus


def resources(on_gpu: bool) -> dict[str, float]:
    """What a process that grades takes of its machine."""
    return {"CPU": CORE, "GPU": 1} if on_gpu else {"CPU": CORE}
