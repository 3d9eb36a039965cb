"""What clients are asked in a round: how much local training, and at what rate."""

import pytest

from fedsim.data.records import Corpus
from fedsim.federation.worst_cases import most_steps
from fedsim.life.steps import UnlearningStep
from fedsim.training.config import LocalConfig, ScheduleConfig
from fedsim.unlearning.methods.grad_diff import GradDiff
from fedsim.unlearning.request import Request
from tests.fedsim.life.lives import live, records_of, scenario_of
from tests.world import make_model, make_records, make_step, make_world

FALLING = LocalConfig(lr=4.0, epochs=2, steps=1, schedule=ScheduleConfig(shape="linear", over="rounds"))


def world_of(llama_base, **more):
    return make_world(make_model(llama_base), rounds=4, **more)


def test_a_schedule_over_rounds_goes_by_the_round_of_the_life(llama_base) -> None:
    planner = world_of(llama_base, local=FALLING).engine.planner
    for round_, rate in ((1, 4.0), (2, 3.0), (4, 1.0)):
        assignment = planner.assign(make_step(round_, (0, 1)), "keep", 0)
        assert {order.local.lr for order in assignment.orders.values()} == {rate}
        assert {order.local.schedule for order in assignment.orders.values()} == {None}


@pytest.mark.parametrize("lr", [None, 0.5])
def test_a_method_s_rate_and_passes_stand_as_they_are(llama_base, lr: float | None) -> None:
    """Helpers train as in that round; the target has the rate that the method names, and all passes."""
    method = GradDiff(method="grad_diff", lr=lr, epochs=3)
    request = Request(client=1, number=1, round=2, scope="client", record_ids=("client-1/0",))
    planner = world_of(llama_base, local=FALLING, methods=[method], requests=[request]).engine.planner
    step = make_step(3, (0, 2), UnlearningStep(branch=method.branch, request=1, index=0))
    orders = planner.assign(step, method.branch, 0).orders
    assert orders[0].local == FALLING.in_round(3, 4)
    assert orders[0].local.lr == 2.0
    assert orders[1].local.lr == (lr or 2.0)
    assert orders[1].local.planned_steps(20) == 9  # 3 passes over 20 records, 8 a step


def test_noise_is_sized_for_bounded_steps_but_for_all_passes_of_a_request() -> None:
    events = [
        {"join": {"clients": "0-2"}},
        {"train": {"rounds": 2}},
        {"forget": {"client": 1}},
        {"train": {"rounds": 3}},
    ]
    methods = [{"method": "grad_ascent", "rounds": 2, "epochs": 5}]
    records = records_of(3, each=8)
    local = LocalConfig(epochs=4, batch_size=2, steps=3)
    lived = live(events, records, compare=methods, participation=1.0)
    corpus = Corpus(
        clients={client: tuple(make_records(client, len(held))) for client, held in records.items()},
        holdout=(),
        public={},
    )
    most = most_steps(lived.branches, local, scenario_of(events, methods).compare, lived.life, corpus)
    assert most[0] == 5 * 3
    assert most[1] == 2 * 3 + 2 * 5 * 4
