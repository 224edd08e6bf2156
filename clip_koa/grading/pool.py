"""Grading by a Ray cluster: batches out, rows back, and nothing lost or done twice when a machine dies or joins."""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from clip_koa.grading.cluster import CORE, READING, ClusterError, Machine, check_size, machines
from clip_koa.grading.grade_table import table_row
from clip_koa.grading.grader import BATCH_SIZE, GradedXray
from clip_koa.grading.growing_table import GrowingTable
from clip_koa.grading.pairs import whole_pairs
from clip_koa.grading.pool_work import Graded, GradingProcess, Loaded, read_batch
from clip_koa.grading.sources import Waiting
from modeling_clip_koa import CLIPKOAError

_LOOK = 5.0  # seconds between two looks at the machines of the cluster
_PATIENCE = 300.0  # seconds without a process that can grade
_TRIES = 3  # of a batch whose process ended; after that it is graded one by one, and then not at all
_ENDED = "the process that read or graded it ended each time; a decoder may have crashed, or memory run out."


@dataclass
class _Batch:
    numbers: list[int]
    tries: int = 0


@dataclass
class _Process:
    """A process that grades, and what it was given: the first of it is at work, the others are being read."""

    actor: ray.actor.ActorHandle
    machine: Machine
    loading: ray.ObjectRef | None = None  # until it can grade
    work: dict[ray.ObjectRef, _Batch] = field(default_factory=dict)


class Pool:
    """Processes that grade, one for each GPU of a cluster, or for each of so many cores.

    Why not a pool of Ray Data: there the batches of a machine that died wait until it is back where all cores are
    taken, and a machine that joins gets none.

    Args:
        run: the `GradeRun`.
        address: as `joined` takes it, for messages.
        cores: how many grade; None: all GPUs, or all cores where no machine has a GPU.

    Raises:
        ClusterError: the cluster is too small.
    """

    def __init__(self, run, address: str, cores: int | None = None):
        self.run, self.cores = run, cores
        self._on_gpus = check_size(address, cores)
        self._processes: list[_Process] = []
        self._again: deque[_Batch] = deque()
        self._looked = self._idle_since = 0.0
        self._loaded: Loaded | None = None
        self._read = ray.remote(read_batch)

    def load(self) -> Loaded:
        """What the cluster grades by, as its first process says.

        Raises:
            CLIPKOAError: it cannot load the model, or does not get ready.
        """
        self._staff(1)
        while self._loaded is None:
            self._check_patience()
            self._take_in(self._wait())
            self._staff(1)
        return self._loaded

    def grade(self, table: GrowingTable) -> Iterator[tuple[list[Waiting], list[list[dict]]]]:
        """Grades what the table has no row of; gives batches as they are done, in no order.

        Raises:
            CLIPKOAError: a machine grades otherwise than the first, or none is left. What was given stays.
        """
        self._table, batches = table, map(_Batch, table.numbers(BATCH_SIZE))
        most = -(-(len(table.files) - table.kept) // BATCH_SIZE)
        while True:
            self._staff(most)
            while (process := self._least_busy()) and (batch := self._next(batches)):
                self._hand_out(process, batch)
            if not any(process.work for process in self._processes) and not self._again:
                # A batch may be left that no process could take.
                if (batch := next(batches, None)) is None:
                    return
                self._again.append(batch)
            self._check_patience()
            yield from self._take_in(self._wait())

    def _next(self, batches: Iterator[_Batch]) -> _Batch | None:
        return self._again.popleft() if self._again else next(batches, None)

    def _least_busy(self) -> _Process | None:
        """The process that has least to do, unless all have so much that none will wait for a reader."""
        ready = [process for process in self._processes if process.loading is None]
        process = min(ready, key=lambda one: len(one.work), default=None)
        if process is None:
            return None
        machine = process.machine
        ahead = max(1, machine.cores // machine.gpus) if self._on_gpus else 1
        return process if len(process.work) <= ahead else None

    def _hand_out(self, process: _Process, batch: _Batch) -> None:
        files, firsts = self._table.files, self._table.paired.firsts
        named = [(number, files[number]) for number in batch.numbers]
        pairs = {file for _, file in named if file in firsts} if self.run.pairs else None
        near = NodeAffinitySchedulingStrategy(process.machine.node, soft=True)
        read = self._read.options(num_cpus=READING, max_retries=0, scheduling_strategy=near)
        graded = process.actor.grade.remote(read.remote(named, self.run.keep_polarity), pairs)
        process.work[graded] = batch

    def _wait(self) -> list[ray.ObjectRef]:
        references = [reference for process in self._processes for reference in process.work]
        references += [process.loading for process in self._processes if process.loading is not None]
        if not references:
            time.sleep(1)
            return []
        return ray.wait(references, num_returns=1, timeout=_LOOK)[0]

    def _take_in(self, done: list[ray.ObjectRef]) -> Iterator[tuple[list[Waiting], list[list[dict]]]]:
        given = []
        for reference in done:
            process = next(one for one in self._processes if reference in one.work or reference == one.loading)
            try:
                result = ray.get(reference)
            except RayTaskError as error:  # raised by our code; any other is of a process or machine that ended
                if isinstance(error.cause, CLIPKOAError):
                    raise error.cause from None
                raise
            except RayError as error:
                given += self._lost(process, reference, is_gone=isinstance(error, RayActorError))
                continue
            if isinstance(result, Graded):
                del process.work[reference]
                given.append((result.waiting, result.entries))
            else:
                process.loading = None
                self._check_same(process, result)
        return iter(given)

    def _lost(self, process: _Process, reference: ray.ObjectRef, is_gone: bool) -> list:
        """Takes back what a process was given, if it is gone; else the one batch that could not be read."""
        if is_gone:
            self._processes.remove(process)
            ray.kill(process.actor)
            lost = list(process.work.values())
        else:
            lost = [process.work.pop(reference)]
        self._looked = 0.0
        given = []
        for place, batch in enumerate(lost):
            batch.tries += place == 0  # it was at work on this one
            if batch.tries < _TRIES:
                self._again.append(batch)
            elif len(parts := self._parts(batch)) > 1:
                self._again.extend(_Batch(part, _TRIES - 1) for part in parts)
            else:
                given.append(_without_grades([(number, self._table.files[number]) for number in batch.numbers]))
        return given

    def _parts(self, batch: _Batch) -> list[list[int]]:
        """Its X-rays one by one, or pair by pair."""
        firsts, files = self._table.paired.firsts, self._table.files
        return list(whole_pairs(batch.numbers, 1, lambda number: files[number] in firsts))

    def _check_same(self, process: _Process, loaded: Loaded) -> None:
        """One table holds what one model and one code says, wherever it was graded."""
        if self._loaded is None:
            self._loaded = loaded
        elif loaded != self._loaded:
            raise ClusterError(
                f"{process.machine.name} would grade otherwise than the first machine: {loaded.made_by}, and not "
                f"{self._loaded.made_by}. Give all the same code and model, and name --precision fp32 or bf16."
            )

    def _staff(self, most: int) -> None:
        """Starts processes where a machine has joined, or where one ended; at most so many."""
        if time.monotonic() < self._looked + _LOOK:
            return
        self._looked = time.monotonic()
        most = min(most, most if self.cores is None else self.cores)
        for machine in machines():
            have = sum(process.machine.node == machine.node for process in self._processes)
            room = min(machine.gpus, machine.cores) if self._on_gpus else machine.cores
            for _ in range(min(room - have, most - len(self._processes))):
                self._start(machine)

    def _start(self, machine: Machine) -> None:
        pinned = NodeAffinitySchedulingStrategy(machine.node, soft=False)
        actor = (
            ray.remote(GradingProcess)
            .options(num_cpus=CORE, num_gpus=int(self._on_gpus), max_restarts=0, scheduling_strategy=pinned)
            .remote(self.run, "cuda" if self._on_gpus else "cpu")
        )
        self._processes.append(_Process(actor, machine, actor.load.remote()))

    def _check_patience(self) -> None:
        """Says it where nothing can come any more, in place of waiting for ever."""
        now = time.monotonic()
        if not self._idle_since or any(process.loading is None for process in self._processes):
            self._idle_since = now
        if now > self._idle_since + _PATIENCE:
            raise ClusterError(
                f"no machine of the cluster could begin to grade within {_PATIENCE:.0f} s: all are gone, lack "
                "clip-koa, or are held by other work."
            )


def _without_grades(named: list[tuple[int, str]]) -> tuple[list[Waiting], list[list[dict]]]:
    rows = [[table_row(GradedXray(file, error=f"{file}: {_ENDED}"))] for _, file in named]
    return [Waiting.looked_at(number, file) for number, file in named], rows
