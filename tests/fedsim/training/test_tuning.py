"""What ``auto`` chooses; clocks are replaced, so no test depends on the machine."""

import os

import pytest
import torch

from fedsim.training import tuning
from fedsim.training.cohorts import CohortLimit
from fedsim.training.tuning import activation_bytes, cohort_limit, fastest_threads, keep_freed_memory
from tests.world import make_model


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


def test_cohorts_on_a_cpu_go_by_tokens(llama_base) -> None:
    limit = cohort_limit(make_model(llama_base), device="cpu")
    assert (limit.clients, limit.tokens) == (1024, 2048)


@pytest.mark.parametrize("gigabytes", [0.001, 0.01, 0.1, 24.0])
def test_a_full_cohort_fits_beside_the_base(llama_base, monkeypatch, gigabytes: float) -> None:
    """What a limit allows, by the same sizes, is never more than the device has."""
    model = make_model(llama_base)
    memory = int(gigabytes * 1e9)
    monkeypatch.setattr(tuning, "device_memory", lambda device: memory)
    limit = cohort_limit(model, device="cuda:0")
    base = sum(p.numel() * p.element_size() for p in model.module.parameters())
    dimension = sum(p.numel() for p in model.parameters().values())
    needed = base + limit.tokens * activation_bytes(model) + limit.clients * 32 * dimension
    assert needed <= memory
    assert limit.tokens <= 16_384


def test_a_cohort_has_room_for_one_at_least() -> None:
    limit = CohortLimit(clients=8, tokens=100)
    assert [limit.room(tokens) for tokens in (0, 1, 20, 50, 51, 1000)] == [8, 8, 5, 2, 1, 1]


def test_keeping_memory_twice_does_no_harm() -> None:
    keep_freed_memory()
    keep_freed_memory()
    assert float(torch.ones(1_000_000).sum()) == 1_000_000
