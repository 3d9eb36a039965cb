"""A method that edits parameters: a draft is trained apart, then gone back from, once."""

import numpy as np
import pytest

from fedsim.federation.rounds import run_round
from fedsim.federation.state import Federation
from fedsim.life.steps import UnlearningStep
from fedsim.model.vectors import to_vector
from fedsim.unlearning.methods.task_vector import TaskVector
from fedsim.unlearning.request import Request
from tests.world import born, make_records, make_step, make_world, same

RECORDS = tuple(record.record_id for record in make_records(1, 5))
WHOLE = Request(number=1, client=1, round=0, scope="client", record_ids=RECORDS)


@pytest.fixture
def world(model):
    return make_world(
        model, methods=[TaskVector(rounds=2, strength=0.5)], requests=[WHOLE], weighting="uniform"
    )


def unlearn(world, federation: Federation, index: int):
    step = make_step(index + 1, [0, 2], UnlearningStep(branch="task_vector", request=1, index=index))
    return run_round(federation, step, "task_vector", world.engine)


def test_a_draft_is_trained_apart_and_gone_back_from(world, start, tmp_path) -> None:
    federation = born(world, start)
    first = unlearn(world, federation, 0)
    assert same(federation.adapter, start)
    assert first.contributors == (1,)
    way = to_vector(federation.kept[1]["draft"]) - to_vector(start)
    assert np.linalg.norm(way) > 0
    assert federation.stored_bytes() == sum(value.nbytes for value in start.values())
    federation.save(tmp_path)
    again = Federation.load(tmp_path, federation.algorithm, federation.adapter)
    assert same(again.kept[1]["draft"], federation.kept[1]["draft"])
    second = unlearn(world, federation, 1)
    assert second.kind == "unlearn"
    assert federation.kept == {}
    assert (to_vector(federation.adapter) - to_vector(start)) @ way < 0
    unlearn(world, again, 1)
    assert same(again.adapter, federation.adapter)


def test_the_way_back_is_the_drafts_way_turned_round(world, start) -> None:
    """By hand: with the draft d and strength a, the adapter ends at w - a (d - w)."""
    federation = born(world, start)
    unlearn(world, federation, 0)
    fork = federation.fork()
    unlearn(world, federation, 1)
    draft = born(world, fork.kept[1]["draft"])
    draft.round, draft.kept = 1, {1: {"draft": fork.kept[1]["draft"]}}
    method = TaskVector(rounds=9)
    world.engine.planner.methods["task_vector"], own = method, world.engine.planner.methods["task_vector"]
    unlearn(world, draft, 1)
    world.engine.planner.methods["task_vector"] = own
    expected = to_vector(start) - 0.5 * (to_vector(draft.kept[1]["draft"]) - to_vector(start))
    assert to_vector(federation.adapter) == pytest.approx(expected, abs=1e-6)


def test_a_client_that_fails_leaves_the_adapter_as_it_was(model, start) -> None:
    def breaks(job, result):
        raise RuntimeError("gone")

    methods = [TaskVector(rounds=1)]
    world = make_world(model, methods=methods, requests=[WHOLE], weighting="uniform", faults={1: breaks})
    federation = born(world, start)
    assert unlearn(world, federation, 0).kind == "empty"
    assert same(federation.adapter, start)
    assert federation.kept == {}
