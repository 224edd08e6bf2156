"""What the processes of a cluster do: tasks read X-rays, and each process that grades keeps a model."""

from collections.abc import Set
from dataclasses import dataclass, replace

from clip_koa.grading.sources import Waiting, try_to_read
from clip_koa.memory import keep_freed_memory
from dataset_script.radiograph import Radiograph, RadiographError

_MOST_SENT = 256_000_000  # pixels of a batch; what is beyond is read where it is graded


@dataclass(frozen=True)
class Loaded:
    """What a process grades by."""

    made_by: str
    is_calibrated: bool
    framing: str


@dataclass(frozen=True)
class Graded:
    """A batch, each X-ray as it was when it was looked at, and its rows."""

    waiting: list[Waiting]
    entries: list[list[dict]]


def read_batch(
    named: list[tuple[int, str]], keep_polarity: bool
) -> tuple[list[Waiting], list[Radiograph | RadiographError | None]]:
    """Reads X-rays, given as numbers and files: each is looked at first, as `Waiting` says it.

    Returns:
        For each what `try_to_read` gives, and None from where they are too large to be sent. Nobody's number is sent.
    """
    waiting, read, pixels = [], [], 0
    for number, file in named:
        waiting.append(Waiting.looked_at(number, file))
        radiograph = try_to_read(file, keep_polarity) if pixels < _MOST_SENT else None
        if isinstance(radiograph, Radiograph):
            pixels += radiograph.image.width * radiograph.image.height
            radiograph = replace(radiograph, person_id=None)
        read.append(radiograph)
    return waiting, read


class GradingProcess:
    """A process of the cluster that grades batches with a model of its own.

    Args:
        run: the `GradeRun`.
        device: a torch device.
    """

    def __init__(self, run, device: str):
        self.run, self.device = run, device

    def load(self) -> Loaded:
        """Loads the model.

        Raises:
            CLIPKOAError: it cannot be.
        """
        import torch

        from clip_koa.grading.run import load_grader, made_by

        keep_freed_memory()
        torch.set_num_threads(1)  # a process for each core: threads of one would wait for each other
        self.grader = load_grader(self.run, self.device)
        return Loaded(made_by(self.run, self.grader), self.grader.is_calibrated, self.grader.framing)

    def grade(
        self, read: tuple[list[Waiting], list[Radiograph | RadiographError | None]], firsts: Set[str] | None
    ) -> Graded:
        """Grades what `read_batch` gave; `firsts` as `Grader.grade_batch` takes them."""
        from clip_koa.grading.run import entries_of

        waiting, radiographs = read
        files = [xray.file for xray in waiting]
        whole = (
            self.grader.read(file) if radiograph is None else radiograph
            for file, radiograph in zip(files, radiographs, strict=True)
        )  # fmt: skip
        return Graded(waiting, entries_of(self.grader.grade_batch(files, whole, firsts)))
