"""Methods that edit the adapter or count an update otherwise: by hand on small arrays, and in real rounds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.federation.rounds import run_round
from fedsim.federation.state import Federation
from fedsim.life.steps import UnlearningStep
from fedsim.model.vectors import to_vector
from fedsim.unlearning.desk import Desk
from fedsim.unlearning.methods.breadcrumbs import Breadcrumbs
from fedsim.unlearning.methods.negation import Negation
from fedsim.unlearning.methods.pga import CENTRE, Pga
from fedsim.unlearning.methods.puf import Puf
from fedsim.unlearning.methods.task_vector import TaskVector
from fedsim.unlearning.protocol import MethodConfig, Work
from fedsim.unlearning.request import Request
from tests.world import World, born, make_records, make_step, make_world, same

RECORDS = tuple(record.record_id for record in make_records(1, 5))
WHOLE = Request(number=1, client=1, round=0, scope="client", record_ids=RECORDS)


def arrays(**values: list[float]) -> dict[str, np.ndarray]:
    return {name: np.array(value, dtype=np.float32) for name, value in values.items()}


def world_of(model, method: MethodConfig, **more) -> World:
    return make_world(model, methods=[method], requests=[WHOLE], weighting="uniform", **more)


def unlearn(world: World, federation: Federation, method: MethodConfig, index: int):
    step = make_step(index + 1, [0, 2], UnlearningStep(branch=method.branch, request=1, index=index))
    return run_round(federation, step, method.branch, world.engine)


def test_breadcrumbs_keep_the_entries_between() -> None:
    """Of ten, the largest is an outlier and the next three are kept, whatever their signs."""
    method = Breadcrumbs(outliers=0.1, kept=0.3, strength=2.0)
    way = np.array([[9, -1, 8, 0, -7], [6, 0.5, -0.25, 1.5, 2]], dtype=np.float32)
    kept = np.array([[0, 0, 8, 0, -7], [6, 0, 0, 0, 0]], dtype=np.float32)
    assert np.array_equal(method.chosen(way), kept)
    desk = Desk(adapter={"w": np.zeros_like(way)}, kept={"draft": {"w": way}})
    assert method.settle(WHOLE, 0, desk) is None
    settled = method.settle(WHOLE, 1, desk)
    assert settled is not None
    assert np.array_equal(settled["w"], -2.0 * kept)


@given(st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=40))
def test_all_crumbs_are_the_task_vector(values: list[float]) -> None:
    way = np.array(values, dtype=np.float32)
    assert np.array_equal(Breadcrumbs(outliers=0.0, kept=1.0).chosen(way), TaskVector().chosen(way))


def test_negation_turns_one_factor_and_the_others_repair(model, start) -> None:
    method = Negation(rounds=2, factor="B")
    begun = method.draft(
        WHOLE, Desk(adapter=arrays(**{"x.lora_A.w": [1, -2], "x.lora_B.w": [3, -4]}), kept={})
    )
    assert begun is not None
    assert begun["x.lora_A.w"].tolist() == [1, -2]
    assert begun["x.lora_B.w"].tolist() == [-3, 4]
    world = world_of(model, method)
    federation = born(world, start)
    first = unlearn(world, federation, method, 0)
    assert set(first.contributors) == {0, 2}, "the forgetting client does nothing"
    assert same(federation.adapter, start)
    draft = federation.kept[1]["draft"]
    unlearn(world, federation, method, 1)
    assert not same(federation.adapter, start)
    assert not same(federation.adapter, draft)
    assert federation.kept == {}


def test_puf_takes_the_forgetting_clients_update_back(model, start) -> None:
    method = Puf(rounds=1, strength=0.5)
    plan = method.plan(WHOLE, 0)
    assert plan.target == Work(weight=-0.5, epochs=1)
    assert plan.helper == Work(weight=1.0)
    ends = {}
    for name, one in {"puf": method, "none": Puf(rounds=1, strength=1e-9)}.items():
        world = world_of(model, one)
        federation = born(world, start)
        result = unlearn(world, federation, one, 0)
        assert set(result.contributors) == {0, 1, 2}
        ends[name] = to_vector(federation.adapter) - to_vector(start)
    alone = TaskVector(rounds=1)
    world = world_of(model, alone)
    federation = born(world, start)
    learned = to_vector(start) - to_vector(run_alone(world, federation, alone))
    assert ends["puf"] - ends["none"] == pytest.approx(-0.5 * learned, abs=1e-5)


def run_alone(world: World, federation: Federation, method: MethodConfig):
    """The adapter after the forgetting client's training has been gone back from once."""
    unlearn(world, federation, method, 0)
    return federation.adapter


def test_pga_by_hand() -> None:
    """Of 5 clients: w_ref = w - u / 4. The adapter comes back to a tenth of |w_ref| from it."""
    method = Pga(clients=5, radius=0.1, rounds=1)
    adapter, learned = arrays(a=[3.0, 4.0]), arrays(a=[4.0, -8.0])
    kept = method.remember(WHOLE, 0, Desk(adapter=adapter, kept={"round-0": learned}))
    assert kept[CENTRE]["a"].tolist() == [2.0, 6.0]
    assert method.settle(WHOLE, 0, Desk(adapter=adapter, kept=dict(kept)))["a"].tolist() == [2.0, 6.0]
    far = arrays(a=[2.0, 16.0])
    found = method.settle(WHOLE, 1, Desk(adapter=far, kept=dict(kept)))
    assert found["a"] == pytest.approx([2.0, 6.0 + 0.1 * 40**0.5], abs=1e-5)
    near = arrays(a=[2.0, 6.1])
    assert method.settle(WHOLE, 1, Desk(adapter=near, kept=dict(kept)))["a"] == pytest.approx([2.0, 6.1])
    assert method.settle(WHOLE, 1, Desk(adapter=far, kept={})) is None


def test_pga_ascends_within_its_ball(model, start) -> None:
    method = Pga(clients=4, radius=0.01, rounds=2, lr=0.5)
    world = world_of(model, method)
    federation = born(world, start)
    assert unlearn(world, federation, method, 0).contributors == (1,)
    centre = to_vector(federation.kept[1][CENTRE])
    assert to_vector(federation.adapter) == pytest.approx(centre)
    for index in (1, 2):
        unlearn(world, federation, method, index)
        away = np.linalg.norm(to_vector(federation.adapter) - centre)
        assert away == pytest.approx(0.01 * np.linalg.norm(centre), rel=1e-3)
