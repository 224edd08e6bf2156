"""Many visitors: nobody waits twice his share, nothing is mixed up, and memory does not grow."""

import pytest

from webapp.load import crowd, memory_after


@pytest.fixture
def contents(knee):
    return [knee(f"{seed}.png", seed).read_bytes() for seed in range(20)]


def test_twenty_visitors_beside_one_with_forty(served, visitor, contents):
    alone = {content: tuple(visitor.grade(content)["probabilities"]) for content in contents}
    found = crowd(served.url, contents)
    assert all(answers == {alone[content]} for content, answers in found["answers"].items())
    assert found["waits"][-1] <= 2 * found["share"]
    assert found["many_wait"] > found["waits"][len(found["waits"]) // 2]


def test_memory_does_not_grow_with_visits(served, contents):
    measured = memory_after(served.url, served.process.pid, contents, (20, 60))
    assert measured[60] <= 1.05 * measured[20]
