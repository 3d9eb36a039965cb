"""What ``auto`` chooses; clocks are replaced, so no test depends on the machine."""

import os

import pytest
import torch

from fedsim.training import tuning
from fedsim.training.cohorts import CohortLimit
from fedsim.training.tuning import fastest_threads, keep_freed_memory


@pytest.fixture(autouse=True)
def _threads_as_they_were():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("alone", "together", "chosen"),
    [([1.0], [0.5, 0.6, 0.5], 4), ([1.0], [0.5, 0.9, 0.5], 1), ([1.0], [0.99] * 3, 1), ([1.0], [9.0] * 3, 1)],
    ids=["always-faster", "once-slower", "hardly-faster", "stalled"],
)
def test_more_threads_must_pay_in_every_trial(monkeypatch, alone, together, chosen) -> None:
    clocks = {1: iter(alone * 3), 4: iter([9.0, *together])}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4), raising=False)
    monkeypatch.setattr(tuning, "_seconds", lambda work, *, threads: next(clocks[threads]))
    assert fastest_threads(lambda: None) == chosen


def test_one_core_is_not_measured(monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(1), raising=False)
    assert fastest_threads(lambda: pytest.fail("measured")) == 1


def test_a_cohort_has_room_for_one_at_least() -> None:
    limit = CohortLimit(clients=8, tokens=100)
    assert [limit.room(tokens) for tokens in (0, 1, 20, 50, 51, 1000)] == [8, 8, 5, 2, 1, 1]


def test_keeping_memory_twice_does_no_harm() -> None:
    keep_freed_memory()
    keep_freed_memory()
    assert float(torch.ones(1_000_000).sum()) == 1_000_000
