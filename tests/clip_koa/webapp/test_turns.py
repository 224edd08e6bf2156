"""Visitors are served in turn."""

import threading

import pytest

from clip_koa.webapp.turns import Turns


@pytest.fixture
def turns():
    turns = Turns()
    yield turns
    turns.close()


def _held(turns):
    """Keeps the worker busy until the event is set."""
    release, started = threading.Event(), threading.Event()
    turns.submit("holder", lambda: started.set() or release.wait(10))
    started.wait(10)
    return release


def test_many_of_one_do_not_hold_up_few_of_another(turns):
    release, order = _held(turns), []
    jobs = [turns.submit("many", lambda number=number: order.append(("many", number))) for number in range(5)]
    jobs += [turns.submit("few", lambda number=number: order.append(("few", number))) for number in range(2)]
    jobs.append(turns.submit("many", lambda: order.append(("many", "urgent")), urgent=True))
    release.set()
    for job in jobs:
        job.result(10)
    assert order[:4] == [("many", "urgent"), ("few", 0), ("many", 0), ("few", 1)]
    assert order[4:] == [("many", number) for number in range(1, 5)]


def test_what_a_visitor_waits_for_is_dropped(turns):
    release, ran = _held(turns), []
    dropped = turns.submit("gone", lambda: ran.append("gone"))
    kept = turns.submit("stays", lambda: ran.append("stays"))
    turns.drop("gone")
    release.set()
    kept.result(10)
    assert dropped.cancelled() and ran == ["stays"]


def test_a_failing_job_fails_alone(turns):
    failing = turns.submit("a", lambda: 1 / 0)
    assert isinstance(failing.exception(10), ZeroDivisionError)
    assert turns.submit("a", lambda: 7).result(10) == 7


def test_a_closed_worker_takes_nothing(turns):
    turns.close()
    assert turns.submit("a", lambda: 7).cancelled()
