"""Selective synaptic dampening: importances against autograd, factors by hand, rounds without training."""

import numpy as np
import pytest
import torch

from fedsim.federation.rounds import run_round
from fedsim.life.steps import UnlearningStep
from fedsim.model.forward import forward
from fedsim.model.text import collate
from fedsim.model.vectors import from_vector, to_vector
from fedsim.training.sequential import SequentialExecutor
from fedsim.unlearning.desk import Desk
from fedsim.unlearning.methods.ssd import Ssd
from fedsim.unlearning.request import Request
from tests.world import encode, make_records, make_step, make_world, same

RECORDS = tuple(record.record_id for record in make_records(1, 5))
WHOLE = Request(number=1, client=1, round=0, scope="client", record_ids=RECORDS)


def squared_gradients(model, adapter, records) -> np.ndarray:
    """The mean over records of the squared gradient of each one's mean NLL, by autograd."""
    model.load(adapter)
    found = []
    for pair in encode(model, records):
        batch = collate([pair], pad_id=model.pad_id)
        loss = forward(model.module, batch).mean_nll.sum()
        own = torch.autograd.grad(loss, list(model.parameters().values()))
        named = dict(zip(model.parameters(), (g.numpy() for g in own), strict=True))
        found.append(to_vector(named).astype(np.float64) ** 2)
    return np.mean(found, axis=0)


def settled(method: Ssd, adapter, forgotten, rest):
    kept = {"round-0": {"a": np.float32(forgotten)}, "round-1": {"a": np.float32(rest)}}
    edited = method.settle(WHOLE, 1, Desk(adapter={"a": np.float32(adapter)}, kept=kept))
    assert edited is not None
    return edited["a"].tolist()


def test_factors_by_hand() -> None:
    """Above ten times the rest: times the ratio. At ten times or without importance: left alone."""
    found = settled(
        Ssd(), [1.0, 1.0, 1.0, 2.0, 1.0], [20.0, 10.0, 0.0, 40.0, -1.0], [1.0, 1.0, 0.0, 0.0, 1.0]
    )
    assert found == pytest.approx([1 / 20, 1.0, 1.0, 0.0, 1.0])
    assert settled(Ssd(dampening=5), [1.0], [20.0], [1.0]) == pytest.approx([0.25])
    assert settled(Ssd(dampening=50), [1.0], [20.0], [1.0]) == [1.0]


@pytest.mark.parametrize("batched", [False, True])
def test_rounds_collect_importances_and_nothing_moves_before_the_second(model, start, batched) -> None:
    world = make_world(model, methods=[Ssd(threshold=1.0)], requests=[WHOLE], weighting="uniform")
    if batched:
        from fedsim.training.batched import BatchedExecutor
        from fedsim.training.cohorts import CohortLimit

        limit = CohortLimit(clients=8, tokens=100_000)
        object.__setattr__(world.engine.runtime, "executor", BatchedExecutor(model, limit))
    federation = world.federation()
    federation.adapter = {name: value.copy() for name, value in start.items()}

    def unlearn(index: int):
        step = make_step(index + 1, [0, 2], UnlearningStep(branch="ssd", request=1, index=index))
        return run_round(federation, step, "ssd", world.engine)

    assert unlearn(0).contributors == (1,)
    assert same(federation.adapter, start)
    mine = squared_gradients(model, start, world.engine.runtime.records[1])
    assert to_vector(federation.kept[1]["round-0"]) == pytest.approx(mine, rel=1e-3, abs=1e-9)
    assert unlearn(1).contributors == (0, 2)
    theirs = np.mean(
        [squared_gradients(model, start, world.engine.runtime.records[client]) for client in (0, 2)], axis=0
    )
    desk = Desk(
        adapter=start, kept={"round-0": from_vector(mine, start), "round-1": from_vector(theirs, start)}
    )
    expected = Ssd(threshold=1.0).settle(WHOLE, 1, desk)
    assert expected is not None
    assert to_vector(federation.adapter) == pytest.approx(to_vector(expected), rel=1e-3, abs=1e-6)
    assert not same(federation.adapter, start)
    assert federation.kept == {}


def test_importances_under_example_dp_are_refused(model, start) -> None:
    private = [{"stage": "example_dp", "noise_multiplier": 1.0, "clip_norm": 1.0, "delta": 1e-3}]
    world = make_world(model, methods=[Ssd()], requests=[WHOLE], weighting="uniform", privacy=private)
    assert isinstance(world.engine.runtime.executor, SequentialExecutor)
    step = make_step(1, [0, 2], UnlearningStep(branch="ssd", request=1, index=0))
    outcome = run_round(world.federation(), step, "ssd", world.engine)
    assert "does not account for" in outcome.failures[1]
