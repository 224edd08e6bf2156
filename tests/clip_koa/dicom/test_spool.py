"""Nothing that was accepted is lost, wherever the process is killed."""

import multiprocessing
import os
import random
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from clip_koa.dicom import spool as module
from clip_koa.dicom import worker as worker_module
from clip_koa.dicom.spool import Spool, SpoolError, Waiting
from clip_koa.dicom.worker import Unsent, Worker
from clip_koa.grading.grader import GradedXray
from dicom.pacs import knee


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path / "spool", 0)
    yield spool
    spool.close()


def reopened(spool: Spool) -> Spool:
    """As a process that starts after the one before was killed."""
    spool.close()
    return Spool(spool.folder, 0)


def test_an_image_goes_from_received_to_sent(spool):
    assert spool.accept("1.2.3", b"image") and not spool.accept("1.2.3", b"image")
    waiting = spool.next_received()
    assert spool.path(waiting.digest).read_bytes() == b"image"
    result = spool.outgoing / "1.2.dcm"
    result.write_bytes(b"result")
    spool.set_graded(waiting, [result])
    assert spool.next_received() is None and not spool.path(waiting.digest).exists()
    again = reopened(spool)
    graded = again.next_graded()
    assert graded == Waiting(waiting.digest, 1, ("1.2.dcm",)) and result.exists()
    again.set_sent(graded)
    assert again.next_graded() is None and not result.exists()
    assert again.counts() == {"received": 0, "graded": 0, "sent": 1, "refused": 0}
    assert not again.accept("1.2.3", b"image")  # ever again
    again.close()


def test_what_was_killed_half_way_is_done_again_or_was_never_accepted(spool):
    spool.accept("1.2.3", b"image")
    waiting = spool.next_received()
    (spool.outgoing / "1.2.3.dcm").write_bytes(b"result of a grading that did not end")
    (spool.incoming / f".{'ab' * 16}.1").write_bytes(b"an upload that did not end")
    (spool.incoming / f"{'cd' * 16}.dcm").write_bytes(b"one whose row was never written")
    again = reopened(spool)
    assert again.next_received() == waiting and [path.name for path in again.incoming.iterdir()] == [
        f"{waiting.digest}.dcm"
    ]
    assert list(again.outgoing.iterdir()) == []
    again.close()


def test_an_image_that_cannot_be_written_is_not_accepted(spool, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        spool.accept("1.2.3", b"image")
    assert list(spool.incoming.iterdir()) == [] and spool.counts()["received"] == 0
    monkeypatch.undo()
    assert spool.accept("1.2.3", b"image")
    assert Spool.is_full(spool) is False
    spool.reserve = 2**60
    assert spool.is_full()


def test_the_same_image_of_many_senders_at_once_is_one(spool):
    taken = []
    threads = [threading.Thread(target=lambda: taken.append(spool.accept("1.2.3", b"image"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken.count(True) == 1 and spool.counts()["received"] == 1


def test_it_is_closed_to_others_and_its_rows_name_nobody(spool):
    spool.accept("1.2.826.0.1.3680043.8.498.77", b"image")
    assert os.stat(spool.folder).st_mode & 0o077 == 0
    rows = sqlite3.connect(spool.folder / "spool.sqlite").execute("SELECT * FROM images").fetchall()
    assert len(rows) == 1 and "498" not in str(rows[0][0])


@pytest.mark.parametrize("content", ["damaged", "foreign", "locked", "lost"])
def test_a_database_that_cannot_be_used_is_told_and_no_image_is_touched(spool, content):
    spool.accept("1.2.3", b"image")
    spool.close()
    file, other = spool.folder / "spool.sqlite", None
    if content == "damaged":
        file.write_bytes(file.read_bytes()[:3000] + b"x" * 9000)
    elif content == "foreign":
        file.unlink()
        sqlite3.connect(file).executescript("CREATE TABLE other (name)")
    elif content == "locked":
        other = sqlite3.connect(file, timeout=0)
        other.execute("BEGIN EXCLUSIVE")
    else:
        file.unlink()
    with pytest.raises(SpoolError, match="spool.sqlite: "):
        Spool(spool.folder, 0)
    assert len(list(spool.incoming.iterdir())) == 1


def test_files_of_others_stay(tmp_path):
    place = tmp_path / "data" / "incoming"
    place.mkdir(parents=True)
    (place / "scan.dcm").write_bytes(b"of somebody else")
    with pytest.raises(SpoolError, match="files lie in incoming"):
        Spool(place.parent, 0)
    (place / "scan.dcm").rename(tmp_path / "scan.dcm")
    spool = Spool(place.parent, 0)
    (tmp_path / "scan.dcm").rename(place / "scan.dcm")
    (place / "folder").mkdir()
    spool = reopened(spool)
    assert sorted(path.name for path in place.iterdir()) == ["folder", "scan.dcm"]
    spool.close()


def test_a_copy_that_comes_while_the_first_is_graded_does_not_stay(spool, monkeypatch):
    """Between a second sender's look into the database and its row, the first sender's image may be done."""
    write = spool._write

    def graded_meanwhile(command, *values):
        monkeypatch.undo()
        spool.path(values[0]).rename(spool.folder / "second")
        spool.accept("1.2.3", b"image")
        spool.set_refused(spool.next_received(), "done")
        (spool.folder / "second").rename(spool.path(values[0]))
        return write(command, *values)

    monkeypatch.setattr(spool, "_write", graded_meanwhile)
    assert not spool.accept("1.2.3", b"image")
    assert list(spool.incoming.iterdir()) == []


def test_a_result_that_cannot_be_flushed_leaves_its_image(spool, monkeypatch):
    spool.accept("1.2.3", b"image")
    waiting = spool.next_received()
    (spool.outgoing / "1.dcm").write_bytes(b"result")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        spool.set_graded(waiting, [spool.outgoing / "1.dcm"])
    assert spool.next_received() == waiting and spool.path(waiting.digest).exists()


class Results:
    """Stands for the model: writes a file for each image."""

    def __init__(self, spool):
        self.spool, self.grader, self.fails = spool, self, False

    def grade(self, files):
        if self.fails:
            raise RuntimeError("a fault")
        return [GradedXray(files[0], error="" if Path(files[0]).stat().st_size > 1 else "no knee")]

    def write(self, graded):
        result = self.spool.outgoing / f"{int(Path(graded[0].file).stem, 16)}.dcm"
        result.write_bytes(b"result")
        return [result]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(worker_module, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(worker_module, "LONGEST_PAUSE", 0.05)


def _is_idle(worker: Worker) -> bool:
    counts = worker.spool.counts()
    return not counts["received"] and not counts["graded"]


def finished(worker: Worker, seconds: float = 20) -> None:
    for _ in range(int(seconds / 0.02)):
        if _is_idle(worker):
            break
        threading.Event().wait(0.02)
    worker.stop()
    assert _is_idle(worker)


def test_an_archive_that_is_away_gets_its_results_later(spool, quick):
    sent, tries = [], iter([Unsent("away")] * 5)

    def send(files):
        if error := next(tries, None):
            raise error
        sent.extend(file.name for file in files)

    for number in range(3):
        spool.accept(f"1.2.{number}", knee(number))
    worker = Worker(spool, Results(spool), send)
    worker.start()
    finished(worker)
    assert len(sent) == len(set(sent)) == 3 and worker.errors.last == "away"
    assert spool.counts()["sent"] == 3 and list(spool.outgoing.iterdir()) == []


def test_one_result_that_the_archive_does_not_like_keeps_no_other_back(spool, quick):
    sent, dislike = [], []

    def send(files):
        dislike[:] = dislike or [files[0].name]
        if files[0].name in dislike and len(sent) < 2:
            raise Unsent("refused", refused=True)
        sent.append(files[0].name)

    for number in range(3):
        spool.accept(f"1.2.{number}", knee(number))
    worker = Worker(spool, Results(spool), send)
    worker.start()
    finished(worker)
    assert len(sent) == 3 and sent[-1] == dislike[0]  # it is tried again, after the others


def test_what_has_no_grade_is_noted_and_not_tried_again(spool, quick):
    spool.accept("1", b"0")
    spool.accept("2", knee(2, StudyInstanceUID=None))
    spool.accept("3", knee(3, Manufacturer="CLIP-KOA"))
    results = Results(spool)
    worker = Worker(spool, results, lambda files: None)
    worker.start()
    for _ in range(500):
        if _is_idle(worker):
            break
        threading.Event().wait(0.02)
    results.fails = True
    spool.accept("4", knee(4))
    worker.wake()
    finished(worker)
    assert spool.reasons() == {
        worker_module.NO_STUDY: 2, worker_module.OWN_RESULT: 1, worker_module.FAILED: 1
    }  # fmt: skip
    assert list(spool.incoming.iterdir()) == []


def test_an_image_that_the_disk_does_not_give_keeps_no_other_back(spool, quick):
    for number in range(3):
        spool.accept(f"1.2.{number}", knee(number))
    bad = spool.path(spool.next_received().digest)
    content = bad.read_bytes()
    bad.unlink()
    bad.mkdir()  # which no one can read, as little as a file on a bad sector
    worker = Worker(spool, Results(spool), lambda files: None)
    worker.start()
    for _ in range(1000):
        if spool.counts()["sent"] == 2:
            break
        threading.Event().wait(0.02)
    assert spool.counts()["sent"] == 2 and spool.counts()["received"] == 1
    assert worker.errors.last == "an accepted image could not be read: Is a directory"
    threading.Event().wait(0.3)  # many tries, none of which counts against it
    bad.rmdir()
    bad.write_bytes(content)
    finished(worker)
    assert spool.counts()["sent"] == 3 and not spool.reasons()


def test_no_error_of_database_or_archive_ends_a_thread(spool, quick, monkeypatch):
    def fails_first(function, *errors):
        waiting = iter(errors)

        def call(*values):
            if error := next(waiting, None):
                raise error
            return function(*values)

        return call

    full = sqlite3.OperationalError("database or disk is full")
    for name in ("next_received", "set_tried", "set_graded", "next_graded", "set_sent"):
        monkeypatch.setattr(spool, name, fails_first(getattr(spool, name), full, OSError(5, "Input/output error")))
    sent = []
    for number in range(3):
        spool.accept(f"1.2.{number}", knee(number))
    send = fails_first(lambda files: sent.extend(file.name for file in files), KeyError("x"), Unsent("away"))
    worker = Worker(spool, Results(spool), send)
    worker.start()
    finished(worker)
    assert len(set(sent)) == 3 and spool.counts()["sent"] == 3 and spool.counts()["refused"] == 0


def test_an_image_that_ends_the_process_is_given_up_behind_the_others(spool, quick):
    for number in range(2):
        spool.accept(f"1.2.{number}", knee(number))
    bad = spool.next_received()
    spool.set_tried(bad)  # and the process ended
    again = reopened(spool)
    assert again.next_received().digest != bad.digest
    for _ in range(worker_module.MOST_TRIES):
        again.set_tried(bad)
    worker = Worker(again, Results(again), lambda files: None)
    worker.start()
    finished(worker)
    assert again.reasons() == {worker_module.FAILED: 1} and again.counts()["sent"] == 1
    again.close()


def test_a_disk_that_is_full_for_long_costs_no_image(spool, quick):
    class Full(Results):
        tries = 0

        def write(self, graded):
            self.tries += 1
            if self.tries < worker_module.MOST_TRIES + 5:
                raise OSError(28, "No space left on device")
            return super().write(graded)

    spool.accept("1.2.3", knee(1))
    worker = Worker(spool, Full(spool), lambda files: None)
    worker.start()
    finished(worker)
    assert spool.counts()["sent"] == 1
    assert worker.errors.last == "a result could not be kept: No space left on device"


def test_files_that_somebody_took_away_are_noted(spool, quick):
    spool.accept("1", knee(1))
    spool.path(spool.next_received().digest).unlink()
    spool.accept("2", knee(2))
    waiting = Waiting(spool._one("SELECT digest FROM images WHERE number = 2")[0])
    (spool.outgoing / "1.dcm").write_bytes(b"result")
    spool.set_graded(waiting, [spool.outgoing / "1.dcm"])
    (spool.outgoing / "1.dcm").unlink()
    worker = Worker(spool, Results(spool), lambda files: None)
    worker.start()
    finished(worker)
    assert spool.reasons() == {worker_module.GONE: 2}


def _work(folder: Path, archive: Path) -> None:
    """A listener's process without its network: accepts, grades and sends until it is killed or all is done."""
    spool = Spool(folder, 0)

    def send(files):
        for file in files:
            (archive / ".part").write_bytes(file.read_bytes())
            os.replace(archive / ".part", archive / file.name)

    worker = Worker(spool, Results(spool), send)
    worker.start()
    for number in range(60):
        spool.accept(f"1.2.{number}", knee(number))  # again, where the process before was killed
        worker.wake()
    while not _is_idle(worker):
        time.sleep(0.01)
    worker.stop()
    spool.close()


def test_wherever_it_is_killed_each_image_gets_its_result(tmp_path):
    folder, archive = tmp_path / "spool", tmp_path / "archive"
    archive.mkdir()
    draw, kills = random.Random(0), 0
    context = multiprocessing.get_context("fork")
    while True:
        process = context.Process(target=_work, args=(folder, archive))
        process.start()
        process.join(draw.uniform(0.02, 0.4) if kills < 15 else 60)
        if process.exitcode == 0:
            break
        assert process.exitcode is None and kills < 15
        process.kill()
        process.join()
        kills += 1
    spool = Spool(folder, 0)
    assert spool.counts() == {"received": 0, "graded": 0, "sent": 60, "refused": 0}
    assert len(list(archive.glob("*.dcm"))) == 60 and kills
    assert not list(spool.incoming.iterdir()) and not list(spool.outgoing.iterdir())
    spool.close()
