"""What clients tell of their losses, and weights that follow from what a request has kept."""

from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import pytest

from fedsim.federation.reports import TOLD, may_be_told, require_told, told
from fedsim.federation.rounds import RoundOutcome, run_round
from fedsim.federation.state import Federation
from fedsim.federation.worst_cases import planned_weights
from fedsim.life.script import Life
from fedsim.life.steps import UnlearningStep
from fedsim.model.vectors import to_vector
from fedsim.training.objectives import LocalWork, MeanNll
from fedsim.unlearning.protocol import LossMethodConfig, RoundPlan, Work
from fedsim.unlearning.registry import METHODS
from fedsim.unlearning.request import Request
from privacy import Pipeline, ViewError, build_pipeline
from privacy.clipping import ClipConfig
from privacy.local_dp import LocalDpConfig
from privacy.secagg import SecureAggregationConfig
from tests.fedsim.federation.test_rounds import born, moved, update_of, watched
from tests.world import LOCAL, World, make_records, make_step, make_world, same

IDS = tuple(record.record_id for record in make_records(1, 5))
WHOLE = Request(number=1, client=1, round=0, scope="client", record_ids=IDS)


class Telling(LossMethodConfig):
    """Helpers tell their losses; their weight in the next round is the sum of what they have told so far."""

    title: ClassVar[str] = "Telling"
    summary: ClassVar[str] = "for tests"
    method: Literal["telling"] = "telling"

    def local(self, role, index) -> LocalWork:
        return LocalWork(MeanNll(), tells=role == "helper")

    def plan(self, request, index) -> RoundPlan:
        return replace(super().plan(request, index), helper=Work(weight=0.5, most=9.0))

    def weigh(self, plan, kept) -> RoundPlan:
        if "sum" not in kept:
            return plan
        assert plan.helper is not None
        return replace(plan, helper=replace(plan.helper, weight=float(kept["sum"]["told"][0])))

    def remember(self, request, index, desk):
        before = desk.kept["sum"]["told"] if "sum" in desk.kept else np.zeros(1, np.float32)
        return {} if desk.told is None else {"sum": {"told": before + np.float32(desk.told)}}


@pytest.fixture(autouse=True)
def _registered(monkeypatch) -> None:
    monkeypatch.setitem(METHODS, "telling", Telling)


def world_of(model, **more) -> World:
    nominal = {"metrics": (TOLD,)} | more.pop("nominal", {})
    method = Telling(gamma=0.5, lr=0.05)
    return make_world(model, methods=[method], requests=[WHOLE], nominal=nominal, **more)


def unlearn(world: World, federation: Federation, cohort: list[int], index: int = 0) -> RoundOutcome:
    step = make_step(index + 1, cohort, UnlearningStep(branch="telling", request=1, index=index))
    return run_round(federation, step, "telling", world.engine)


def losses_of(executor, clients) -> float:
    """The mean of what these clients' trainings in the last round lost on average, done again."""
    jobs = {job.client: job for job in executor.jobs}
    return float(np.mean([executor.inner.train_clients([jobs[c]])[0].loss for c in clients]))


def test_a_round_remembers_what_its_helpers_told_and_the_next_one_weighs_by_it(model, start) -> None:
    world, executor = watched(world_of(model))
    federation = born(world, start)
    unlearn(world, federation, [0, 2])
    expected = losses_of(executor, [0, 2])
    (kept,) = federation.kept[1]["sum"]["told"]
    assert kept == pytest.approx(expected, rel=1e-5)
    middle = {name: value.copy() for name, value in federation.adapter.items()}
    unlearn(world, federation, [2, 3], 1)
    own = LOCAL.model_copy(update={"lr": 0.05, "epochs": 1})
    target = update_of(model, middle, 1, round_=2, local=own)
    helpers = np.mean([update_of(model, middle, client, round_=2) for client in (2, 3)], axis=0)
    assert moved(federation, middle) == pytest.approx(0.5 * target + float(kept) * helpers, abs=2e-6)


def test_only_those_that_are_asked_and_contribute_count(model, start) -> None:
    """The target tells nothing, nor does a helper that fails; with nobody left nothing is remembered."""
    world, executor = watched(world_of(model))
    federation = born(world, start)
    outcome = unlearn(world, federation, [0])
    assert outcome.contributors == (0, 1)
    assert federation.kept[1]["sum"]["told"][0] == pytest.approx(losses_of(executor, [0]), rel=1e-5)
    alone = born(world, start)
    assert unlearn(world, alone, []).contributors == (1,)
    assert alone.kept == {}


def test_the_mean_is_over_those_that_were_asked_and_are_here() -> None:
    """Three contributors say 3 on average, of whom two were asked: 9 between them."""
    assert told({"loss": 3.0}, [1, 2, 3], [2, 3, 4]) == 4.5
    assert told({"loss": 3.0}, [1], [2]) is None


def test_ordinary_rounds_say_nothing_and_move_as_ever(model, start) -> None:
    plain, telling = make_world(model), world_of(model)
    found = []
    for world in (plain, telling):
        federation = born(world, start)
        run_round(federation, make_step(1, [0, 2, 3]), "keep", world.engine)
        found.append(federation.adapter)
    assert same(*found)


@pytest.mark.parametrize(
    ("stages", "reason"),
    [
        ([ClipConfig(norm=1.0), SecureAggregationConfig(min_cohort=2)], "individual_weights"),
        (
            [ClipConfig(norm=1.0), LocalDpConfig(noise_multiplier=1.0, delta=1e-3)],
            "local_dp does not",
        ),
    ],
    ids=["masked", "noised"],
)
def test_losses_are_not_told_where_updates_are_hidden(stages, reason: str) -> None:
    nominal = replace(Pipeline().nominal, max_cohort=4, dimension=8)
    pipeline = build_pipeline(stages, nominal=nominal)
    assert not may_be_told(pipeline)
    with pytest.raises(ViewError, match=reason):
        require_told(pipeline, method="telling")
    clipped = build_pipeline([ClipConfig(norm=1.0)])
    assert may_be_told(clipped)
    require_told(clipped, method="telling")


def test_a_client_that_is_asked_all_the_same_does_not_tell(model, start) -> None:
    masked = [{"stage": "clip", "norm": 1.0}, {"stage": "secure_aggregation", "min_cohort": 2}]
    world = make_world(model, methods=[Telling()], requests=[WHOLE], weighting="uniform", privacy=masked)
    outcome = unlearn(world, born(world, start), [0, 2])
    assert "is asked for its loss" in outcome.failures[0]


def test_weights_are_sized_for_the_most_that_may_come(model, start) -> None:
    life = Life(horizon=3, events=(), requests=(WHOLE,))
    assert max(planned_weights([Telling(rounds=2)], life)) == 9.0
    world = world_of(model, weighting="uniform")
    federation = born(world, start)
    federation.keep(1, "sum", {"told": np.array([50.0])})
    outcome = unlearn(world, federation, [0, 2], 1)
    assert "planned_weight=25.0 exceeds max_weight=4.0" in outcome.failures[0]


def test_what_is_remembered_is_saved_and_goes_with_the_last_round(model, start, tmp_path) -> None:
    world = world_of(model)
    whole = born(world, start)
    unlearn(world, whole, [0, 2])
    whole.save(tmp_path)
    again = Federation.load(tmp_path, whole.algorithm, {k: v.copy() for k, v in whole.adapter.items()})
    fork = whole.fork()
    for federation in (whole, again, fork):
        for index in (1, 2):
            unlearn(world, federation, [0, 3], index)
        assert federation.kept == {}
        assert to_vector(federation.adapter).tobytes() == to_vector(whole.adapter).tobytes()
