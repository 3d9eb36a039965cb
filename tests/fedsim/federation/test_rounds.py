"""One federated round: who is asked, what is combined, whose fault is whose."""

import os
import random
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from fedsim.federation.attempt import attempt_round
from fedsim.federation.exchange import Running, Taken, carry, group_of
from fedsim.federation.rounds import RoundOutcome, run_round, run_rounds
from fedsim.federation.state import Federation
from fedsim.federation.strategies.registry import strategy_of
from fedsim.life.events.drop import FallsSilent
from fedsim.life.events.protocol import Moment
from fedsim.life.steps import Participant, Step, UnlearningStep
from fedsim.model.adapter import AdapterModel
from fedsim.model.vectors import Arrays, to_vector
from fedsim.training.drift import Proximal
from fedsim.training.jobs import TrainJob, TrainResult
from fedsim.training.objectives import MeanNll
from fedsim.training.sequential import SequentialExecutor
from fedsim.unlearning.methods.grad_ascent import GradAscent, NegatedNll
from fedsim.unlearning.methods.grad_diff import GradDiff
from fedsim.unlearning.methods.npo import Npo
from fedsim.unlearning.request import Request
from privacy import Draw
from privacy.accounting import Mechanism
from privacy.accounting import epsilon as accounted
from tests.world import (
    LOCAL,
    World,
    born,
    encode,
    gives_nan,
    make_records,
    make_step,
    make_world,
    raises,
    random_arrays,
    same,
    too_long,
)

CLIP = [{"stage": "clip", "norm": 0.5}]
MASKED = [*CLIP, {"stage": "secure_aggregation"}]
WHOLE = Request(
    number=1, client=1, round=0, scope="client", record_ids=tuple(r.record_id for r in make_records(1, 5))
)


@pytest.fixture(scope="module")
def start(model: AdapterModel) -> Arrays:
    return random_arrays(model, 21)


def one_round(
    world: World, start: Arrays, clients: list[int], round_: int = 1
) -> tuple[Federation, RoundOutcome]:
    federation = born(world, start)
    return federation, run_round(federation, make_step(round_, clients), "keep", world.engine)


def update_of(model: AdapterModel, start: Arrays, client: int, *, round_: int = 1, **more) -> np.ndarray:
    """What a client of ``make_world`` sends in a round, trained outside it."""
    records = make_records(client, 4 + client)
    fields = {
        "client": client,
        "round": round_,
        "seed": 7,
        "adapter": start,
        "pairs": encode(model, records),
        "record_ids": tuple(record.record_id for record in records),
        "local": LOCAL,
        "objective": MeanNll(),
    }
    (result,) = SequentialExecutor(model=model).train_clients([TrainJob(**(fields | more))])
    assert result.error is None
    return result.update.astype(np.float64)


def moved(federation: Federation, start: Arrays) -> np.ndarray:
    return to_vector(federation.adapter).astype(np.float64) - to_vector(start)


# -------------------------------------------------------------------------- ordinary rounds


@pytest.mark.parametrize(("weighting", "weights"), [("examples", [4, 5, 6]), ("uniform", [1, 1, 1])])
def test_three_updates_by_hand(model, start, weighting: str, weights: list[int]) -> None:
    federation, outcome = one_round(make_world(model, weighting=weighting), start, [0, 1, 2])
    updates = [update_of(model, start, client) for client in range(3)]
    assert moved(federation, start) == pytest.approx(np.average(updates, axis=0, weights=weights), abs=1e-6)
    assert outcome.kind == "train"
    assert outcome.contributors == (0, 1, 2)
    assert outcome.update_norm == pytest.approx(np.linalg.norm(moved(federation, start)))
    assert outcome.failures == {}
    assert outcome.taken.clients == 3
    assert outcome.taken.steps == 2 * (2 + 3 + 3)
    assert outcome.taken.messages == 3
    assert outcome.taken.bytes_up > 3 * 4 * sum(value.size for value in start.values())
    assert (federation.round, federation.version) == (1, 1)


def test_neither_the_order_of_the_cohort_nor_of_replies_matters(model, start, monkeypatch) -> None:
    world = make_world(model)
    federation, _ = one_round(world, start, [0, 1, 2, 3])
    other, _ = one_round(world, start, [2, 0, 3, 1])
    send = world.engine.grid.send_and_receive
    monkeypatch.setattr(world.engine.grid, "send_and_receive", lambda messages: send(messages)[::-1])
    reversed_, _ = one_round(world, start, [0, 1, 2, 3])
    assert same(federation.adapter, other.adapter)
    assert same(federation.adapter, reversed_.adapter)


def test_a_clients_update_does_not_depend_on_the_cohort(model, start) -> None:
    """Two cohorts that differ by one client: the difference of the sums is its update."""
    world = make_world(model, weighting="uniform")
    with_, _ = one_round(world, start, [0, 1, 2])
    without, _ = one_round(world, start, [0, 2])
    third = 3 * moved(with_, start) - 2 * moved(without, start)
    assert third == pytest.approx(update_of(model, start, 1), abs=2e-6)


def test_records_named_in_without_are_not_used(model, start) -> None:
    world = make_world(model)
    gone = ("c2/r1", "c2/r3")
    cohort = (Participant(client=2, without=gone),)
    federation = born(world, start)
    outcome = run_round(federation, Step(round=1, cohort=cohort, nominal_size=1), "leave", world.engine)
    records = [r for r in make_records(2, 6) if r.record_id not in gone]
    expected = update_of(
        model,
        start,
        2,
        pairs=encode(model, records),
        record_ids=tuple(record.record_id for record in records),
    )
    assert moved(federation, start) == pytest.approx(expected, abs=1e-6)
    assert outcome.taken.steps == 2 * 2


def test_global_generators_are_not_touched(model, start) -> None:
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002 (it is the global one that is watched)
    torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    one_round(make_world(model, privacy=MASKED), start, [0, 1, 2])
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


def test_fedprox_reaches_the_client(model, start) -> None:
    mu = 4.0
    world = make_world(model, strategy=strategy_of("fedprox", proximal_mu=mu))
    federation, _ = one_round(world, start, [1])
    assert moved(federation, start) == pytest.approx(update_of(model, start, 1, drift=Proximal(mu)), abs=1e-6)
    assert not np.allclose(moved(federation, start), update_of(model, start, 1), atol=1e-4)


# ---------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("fault", "reason"), [(raises, "the client crashed"), (gives_nan, "NaN"), (too_long, "entries")]
)
def test_a_clients_fault_is_its_own(model, start, fault, reason: str) -> None:
    federation, outcome = one_round(make_world(model, faults={1: fault}), start, [0, 1, 2])
    without, _ = one_round(make_world(model), start, [0, 2])
    assert list(outcome.failures) == [1]
    assert reason in outcome.failures[1]
    assert outcome.contributors == (0, 2)
    assert same(federation.adapter, without.adapter)


def test_a_misshapen_update_is_outvoted_where_the_dimension_is_not_known(model, start) -> None:
    world = make_world(model, faults={1: too_long}, sized=False)
    federation, outcome = one_round(world, start, [0, 1, 2])
    assert list(outcome.failures) == [1]
    assert "expected float32" in outcome.failures[1]
    assert outcome.contributors == (0, 2)
    assert same(federation.adapter, one_round(make_world(model), start, [0, 2])[0].adapter)


def test_a_late_update_is_refused(model, start, monkeypatch) -> None:
    """A client that trained on another version of the adapter than the server's."""
    world = make_world(model)
    send = world.engine.grid.send_and_receive

    def stale(messages):
        replies = send(messages)
        replies[1].content.config_records["config"]["version"] = 99
        return replies

    monkeypatch.setattr(world.engine.grid, "send_and_receive", stale)
    _, outcome = one_round(world, start, [0, 1, 2])
    assert outcome.failures == {1: "trained on version 99, the server is at 0"}


@pytest.mark.parametrize("missing", ["update", "fields", "client-state", "config"])
def test_a_reply_that_lacks_something_is_that_clients_failure(model, start, monkeypatch, missing) -> None:
    world = make_world(model)
    send = world.engine.grid.send_and_receive

    def cut(messages):
        replies = send(messages)
        del replies[0].content[missing]
        return replies

    monkeypatch.setattr(world.engine.grid, "send_and_receive", cut)
    _, outcome = one_round(world, start, [0, 1, 2])
    assert list(outcome.failures) == [0]
    assert missing in outcome.failures[0]
    assert outcome.contributors == (1, 2)


@pytest.mark.parametrize("privacy", [[], MASKED], ids=["plain", "masked"])
@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam"])
def test_when_everybody_fails_nothing_moves(model, start, privacy, strategy: str) -> None:
    faults = {9: raises}
    world = make_world(model, privacy=privacy, faults=faults, strategy=strategy_of(strategy))
    federation, _ = one_round(world, start, [0, 1, 2])
    adapter, state = federation.adapter, federation.server_memory()
    faults.update(dict.fromkeys(range(4), raises))
    outcome = run_round(federation, make_step(2, [0, 1, 2]), "keep", world.engine)
    assert outcome.kind == "empty"
    assert sorted(outcome.failures) == [0, 1, 2]
    assert outcome.contributors == ()
    assert outcome.update_norm == 0.0
    assert same(federation.adapter, adapter)
    assert federation.version == 1
    after = federation.server_memory()
    kept = [name for name in state if name != "current"]
    assert kept
    assert all(same(state[name], after[name]) for name in kept)


@pytest.mark.parametrize("privacy", [[], MASKED], ids=["plain", "masked"])
def test_an_empty_cohort_is_an_empty_round(model, start, privacy) -> None:
    federation, outcome = one_round(make_world(model, privacy=privacy), start, [], round_=4)
    assert outcome.kind == "empty"
    assert same(federation.adapter, start)
    assert (federation.round, federation.version) == (4, 0)
    assert outcome.taken.messages == 0


def test_a_record_less_client_fails_alone(model, start) -> None:
    everything = tuple(r.record_id for r in make_records(1, 5))
    cohort = (Participant(client=0), Participant(client=1, without=everything))
    world = make_world(model)
    federation = born(world, start)
    outcome = run_round(federation, Step(round=1, cohort=cohort, nominal_size=2), "keep", world.engine)
    assert list(outcome.failures) == [1]
    assert "holds no record" in outcome.failures[1]


# --------------------------------------------------------------------------- masked rounds


def test_a_masked_round_is_the_plain_round_up_to_quantisation(model, start) -> None:
    masked, outcome = one_round(make_world(model, privacy=MASKED), start, [0, 1, 2, 3])
    plain, _ = one_round(make_world(model, privacy=CLIP), start, [0, 1, 2, 3])
    assert np.abs(moved(masked, start) - moved(plain, start)).max() < 1e-6
    assert outcome.contributors == (0, 1, 2, 3)
    assert outcome.taken.messages == 16  # keys, shares, an update and the unmasking of each


def test_a_masked_round_is_the_same_in_every_branch(model, start) -> None:
    """Masks differ by branch; nothing in the results depends on them."""
    world = make_world(model, privacy=MASKED)
    adapters = []
    for branch in ("keep", "leave"):
        federation = born(world, start)
        run_round(federation, make_step(1, [0, 1, 2]), branch, world.engine)
        adapters.append(federation.adapter)
    assert same(*adapters)


@pytest.mark.parametrize("fault", [raises, gives_nan, too_long])
def test_a_masked_round_does_without_the_client_that_failed(model, start, fault) -> None:
    world = make_world(model, privacy=MASKED, faults={1: fault})
    federation, outcome = one_round(world, start, [0, 1, 2, 3])
    without, _ = one_round(make_world(model, privacy=MASKED), start, [0, 2, 3])
    assert list(outcome.failures) == [1]
    assert outcome.contributors == (0, 2, 3)
    assert same(federation.adapter, without.adapter)
    plain, _ = one_round(make_world(model, privacy=CLIP), start, [0, 2, 3])
    assert np.abs(moved(federation, start) - moved(plain, start)).max() < 1e-6
    assert outcome.taken.messages == 4 + 4 + 4 + 3


def test_a_masked_round_with_too_few_left_is_repeated_without_those_that_failed(model, start) -> None:
    strict = [*CLIP, {"stage": "secure_aggregation", "threshold": 1.0}]
    world = make_world(model, privacy=strict, faults={1: raises})
    federation, outcome = one_round(world, start, [0, 1, 2, 3])
    without, _ = one_round(make_world(model, privacy=MASKED), start, [0, 2, 3])
    assert list(outcome.failures) == [1]
    assert outcome.contributors == (0, 2, 3)
    assert same(federation.adapter, without.adapter)
    assert outcome.taken.messages == 3 * 4 + 4 * 3
    assert "1 of 4 masked clients did not report" in outcome.repeated[0]


@pytest.mark.parametrize("stage", get_args(Moment))
@pytest.mark.parametrize("privacy", [CLIP, MASKED], ids=["plain", "masked"])
def test_clients_drop_out_where_the_scenario_says(model, start, privacy, stage: str) -> None:
    world = make_world(model, privacy=privacy, clients=5)
    federation = born(world, start)
    step = replace(make_step(1, [0, 1, 2, 3, 4]), conditions=((3, (FallsSilent(stage=stage),)),))
    outcome = run_round(federation, step, "keep", world.engine)
    stays = stage == "during_unmasking"
    there = [0, 1, 2, 3, 4] if stays else [0, 1, 2, 4]
    expected, _ = one_round(make_world(model, privacy=privacy, clients=5), start, there)
    assert outcome.contributors == tuple(there)
    assert same(federation.adapter, expected.adapter)
    if privacy is MASKED or not stays:
        assert "dropped out" in outcome.failures[3]
        assert "as scripted" in outcome.failures[3]


def test_keys_of_deployed_clients_are_their_own_and_used_once(model, start, monkeypatch) -> None:
    """Drawn by each client itself, kept between its messages, also when an attempt is repeated."""
    drawn: list[bytes] = []
    real = os.urandom

    def noted(size: int) -> bytes:
        drawn.append(real(size))
        return drawn[-1]

    monkeypatch.setattr("privacy.secagg.stage.os.urandom", noted)
    strict = [*CLIP, {"stage": "secure_aggregation", "threshold": 1.0}]
    world = make_world(model, privacy=strict, faults={1: raises}, simulated=False)
    federation, outcome = one_round(world, start, [0, 1, 2, 3])
    keyed, _ = one_round(make_world(model, privacy=strict, faults={1: raises}), start, [0, 1, 2, 3])
    assert outcome.contributors == (0, 2, 3)
    assert same(federation.adapter, keyed.adapter)
    assert len(set(drawn)) == 4 + 3
    kept = world.engine.runtime.kept
    assert set(kept) == {("keep", 1)}, (
        "erased once the masks are off; only the client that failed never came so far"
    )
    assert (outcome.taken.steps, outcome.taken.tokens) == (None, None)


@pytest.mark.parametrize("simulated", [False, True])
def test_a_deployed_client_unmasks_one_attempt_at_a_round(model, start, simulated: bool) -> None:
    """The sum over all, and then that without client 1, would give client 1's update by subtraction."""
    world = make_world(model, privacy=MASKED, simulated=simulated)
    federation, outcome = one_round(world, start, [0, 1, 2, 3])
    assert outcome.contributors == (0, 1, 2, 3)
    federation.adapter = {name: value.copy() for name, value in start.items()}
    assignment = world.engine.planner.assign(make_step(1, [0, 2, 3]), "keep", federation.version)
    orders = {c: order.model_copy(update={"attempt": 1}) for c, order in assignment.orders.items()}
    exchange = attempt_round(federation, orders, assignment, "keep", 1, world.engine)
    running = Running(group=group_of("keep", 1), exchange=exchange, taken=Taken())
    (again,) = carry([running], world.engine.grid)
    if simulated:  # its memory is carried to it, and it has none of its own
        assert again.result is not None
        return
    assert again.result is None
    assert set(again.failed) == {0, 2, 3}
    assert all("takes no part in another attempt" in reason for reason in again.failed.values())
    _, outcome = one_round(world, start, [0, 1, 2, 3], round_=2)
    assert outcome.contributors == (0, 1, 2, 3)


def test_a_client_that_fails_to_advertise_is_left_out(model, start, monkeypatch) -> None:
    world = make_world(model, privacy=MASKED)
    party = type(world.engine.runtime).party

    def unreachable(self, client, order, *more):
        if client == 2:
            raise ConnectionError("no route")
        return party(self, client, order, *more)

    monkeypatch.setattr(type(world.engine.runtime), "party", unreachable)
    federation, outcome = one_round(world, start, [0, 1, 2])
    monkeypatch.undo()
    assert list(outcome.failures) == [2]
    assert "no route" in outcome.failures[2]
    without, _ = one_round(make_world(model, privacy=MASKED), start, [0, 1])
    assert same(federation.adapter, without.adapter)


def test_one_client_alone_is_never_summed(model, start) -> None:
    federation, outcome = one_round(make_world(model, privacy=MASKED), start, [2])
    assert outcome.kind == "empty"
    assert outcome.aborted is not None
    assert "min_cohort=2" in outcome.aborted
    assert same(federation.adapter, start)
    left, outcome = one_round(make_world(model, privacy=MASKED, faults={1: raises}), start, [1, 2])
    assert outcome.kind == "empty"
    assert outcome.aborted is not None
    assert same(left.adapter, start)


# ---------------------------------------------------------------------------------- budgets

DP = {"stage": "example_dp", "delta": 1e-3, "clip_norm": 1.0, "accountant": "rdp"}
BUDGET = [DP | {"target_epsilon": 1.0}]


def epsilon(federation: Federation, client: int) -> float:
    return federation.ledger.epsilon(str(client), unit="example", delta=1e-3, accountant="rdp")


def test_clients_whose_budget_is_spent_sit_out(model, start) -> None:
    world = make_world(model, privacy=BUDGET, weighting="uniform", more=0, rounds=2)
    federation = born(world, start)
    seen = []
    for round_, cohort in enumerate([[0, 1], [1], [0, 1, 2], [0, 1]], start=1):
        outcome = run_round(federation, make_step(round_, cohort), "keep", world.engine)
        seen.append((outcome.contributors, outcome.exhausted, outcome.kind))
        assert all(epsilon(federation, client) <= 1.0 for client in range(4))
    assert seen == [
        ((0, 1), (), "train"),
        ((1,), (), "train"),
        ((0, 2), (1,), "train"),
        ((), (0, 1), "empty"),
    ]
    assert epsilon(federation, 1) > 0.8
    assert epsilon(federation, 3) == 0.0


@pytest.mark.parametrize(("threshold", "attempt"), [(0.6, 0), (1.0, 1)])
def test_only_what_was_summed_is_charged(model, start, threshold: float, attempt: int) -> None:
    """A masked update whose sum was never read says nothing."""
    masks = [*CLIP, {"stage": "secure_aggregation", "threshold": threshold}]
    world = make_world(model, privacy=[*BUDGET, *masks], weighting="uniform", more=0, faults={1: raises})
    federation, outcome = one_round(world, start, [0, 1, 2])
    assert outcome.contributors == (0, 2)
    assert {release.clients for release in federation.ledger.releases()} == {("0",), ("2",)}
    assert {release.attempt for release in federation.ledger.releases()} == {attempt}
    assert [release.steps for release in federation.ledger.releases()] == [4, 4]


def test_a_client_without_planned_rounds_has_a_budget_for_one_training(model, start) -> None:
    """A client that is forgotten before it ever took part is asked to cooperate all the same."""
    method = GradAscent(rounds=2)
    world = make_world(
        model, privacy=BUDGET, weighting="uniform", more=0, methods=[method], requests=[WHOLE], rounds=0
    )
    federation = born(world, start)
    kinds = []
    for index in range(2):
        step = make_step(1 + index, [], UnlearningStep(branch="grad_ascent", request=1, index=index))
        outcome = run_round(federation, step, "grad_ascent", world.engine)
        kinds.append((outcome.kind, outcome.exhausted))
        assert epsilon(federation, 1) <= 1.0
    assert kinds == [("unlearn", ()), ("empty", (1,))]


def test_the_same_noise_is_drawn_in_every_branch(model, start) -> None:
    world = make_world(model, privacy=BUDGET, weighting="uniform", more=0)
    adapters = []
    for branch in ("keep", "leave"):
        federation = born(world, start)
        run_round(federation, make_step(1, [0, 1]), branch, world.engine)
        assert {release.branch for release in federation.ledger.releases()} == {branch}
        adapters.append(federation.adapter)
    assert same(*adapters)


# ------------------------------------------------------------------------ unlearning rounds


def unlearn(
    world: World, federation: Federation, cohort: list[int], branch: str, index: int = 0
) -> RoundOutcome:
    step = make_step(1 + index, cohort, UnlearningStep(branch=branch, request=1, index=index))
    return run_round(federation, step, branch, world.engine)


@pytest.mark.parametrize("combine", ["sum", "mean"])
def test_target_and_helpers_are_combined_as_documented(model, start, combine: str) -> None:
    method = GradDiff(rounds=2, gamma=0.5, alpha=2.0, lr=0.02, epochs=3, combine=combine)
    world = make_world(model, methods=[method], requests=[WHOLE])
    federation = born(world, start)
    outcome = unlearn(world, federation, [0, 2, 3], "grad_diff")
    target = update_of(
        model,
        start,
        1,
        objective=NegatedNll(),
        local=LOCAL.model_copy(update={"lr": 0.02, "epochs": 3}),
    )
    helpers = [update_of(model, start, client) for client in (0, 2, 3)]
    expected = 0.5 * target + 2.0 * np.mean(helpers, axis=0)
    expected /= 2.5 if combine == "mean" else 1.0
    assert moved(federation, start) == pytest.approx(expected, abs=2e-6)
    assert outcome.kind == "unlearn"
    assert outcome.request == 1
    assert outcome.contributors == (0, 1, 2, 3)


def test_a_masked_unlearning_round_is_the_plain_one(model, start) -> None:
    method = GradDiff(rounds=2, gamma=0.5, alpha=2.0)
    adapters = []
    for privacy in (CLIP, MASKED):
        world = make_world(model, privacy=privacy, methods=[method], requests=[WHOLE])
        federation = born(world, start)
        assert unlearn(world, federation, [0, 2, 3], "grad_diff").contributors == (0, 1, 2, 3)
        adapters.append(moved(federation, start))
    assert np.abs(adapters[0] - adapters[1]).max() < 1e-6
    assert np.abs(adapters[0]).max() > 1e-3


def test_without_a_retain_term_the_others_are_idle(model, start) -> None:
    world = make_world(model, methods=[GradAscent(gamma=2.0)], requests=[WHOLE])
    federation = born(world, start)
    outcome = unlearn(world, federation, [0, 2, 3], "grad_ascent")
    assert outcome.contributors == (1,)
    local = LOCAL.model_copy(update={"epochs": 1})
    expected = 2.0 * update_of(model, start, 1, objective=NegatedNll(), local=local)
    assert moved(federation, start) == pytest.approx(expected, abs=1e-6)


def test_ascent_raises_the_loss_of_what_is_forgotten(model, start) -> None:
    world = make_world(model, methods=[GradAscent(rounds=5, lr=0.2)], requests=[WHOLE])
    federation = born(world, start)
    losses = []
    for index in range(3):
        unlearn(world, federation, [], "grad_ascent", index)
        frozen = LOCAL.model_copy(update={"lr": 1e-9, "epochs": 1, "batch_size": 100})
        losses.append(loss_of(model, federation.adapter, 1, frozen))
    assert losses == sorted(losses)
    assert losses[0] < losses[2]


def loss_of(model: AdapterModel, arrays: Arrays, client: int, local) -> float:
    records = make_records(client, 4 + client)
    job = TrainJob(
        client=client,
        round=1,
        seed=1,
        adapter=arrays,
        pairs=encode(model, records),
        record_ids=tuple(r.record_id for r in records),
        local=local,
        objective=MeanNll(),
    )
    return SequentialExecutor(model=model).train_clients([job])[0].loss


class Watching:
    """An executor that remembers its jobs."""

    def __init__(self, inner) -> None:
        self.inner, self.jobs = inner, []

    def train_clients(self, jobs: list[TrainJob]) -> list[TrainResult]:
        self.jobs.extend(jobs)
        return self.inner.train_clients(jobs)


def watched(world: World) -> tuple[World, Watching]:
    executor = Watching(world.engine.runtime.executor)
    object.__setattr__(world.engine.runtime, "executor", executor)
    return world, executor


def test_a_request_for_some_records_works_on_just_these(model, start) -> None:
    """The client stays: as target on the records of its request, and not as its own helper."""
    asked = ("c1/r0", "c1/r3")
    request = Request(number=1, client=1, round=0, scope="records", record_ids=asked)
    world, executor = watched(make_world(model, methods=[GradDiff()], requests=[request]))
    federation = born(world, start)
    cohort = tuple(Participant(client=c, without=asked if c == 1 else ()) for c in (0, 1, 2))
    step = Step(
        round=1,
        cohort=cohort,
        nominal_size=3,
        unlearning=UnlearningStep(branch="grad_diff", request=1, index=0),
    )
    outcome = run_round(federation, step, "grad_diff", world.engine)
    assert outcome.contributors == (0, 1, 2)
    by_client = {job.client: job for job in executor.jobs}
    assert len(executor.jobs) == 3
    assert by_client[1].record_ids == asked
    assert isinstance(by_client[1].objective, NegatedNll)
    assert by_client[0].record_ids == tuple(r.record_id for r in make_records(0, 4))
    records = [record for record in make_records(1, 5) if record.record_id in asked]
    target = update_of(
        model,
        start,
        1,
        objective=NegatedNll(),
        local=LOCAL.model_copy(update={"epochs": 1}),
        pairs=encode(model, records),
        record_ids=asked,
    )
    helpers = [update_of(model, start, client) for client in (0, 2)]
    assert moved(federation, start) == pytest.approx(target + np.mean(helpers, axis=0), abs=2e-6)
    assert isinstance(by_client[0].objective, MeanNll)


def test_the_reference_is_the_adapter_at_the_request_and_goes_after_the_last_round(model, start) -> None:
    method = Npo(rounds=3, retain="nll")
    world, executor = watched(make_world(model, methods=[method], requests=[WHOLE]))
    federation = born(world, start)
    for index in range(3):
        assert bool(federation.kept) == (index > 0)
        unlearn(world, federation, [0, 2], "npo", index)
    assert federation.kept == {}
    targets = [job for job in executor.jobs if job.client == 1]
    assert len(targets) == 3
    assert all(same(job.reference, start) for job in targets)
    assert not same(targets[2].adapter, start)
    assert all(job.reference is None for job in executor.jobs if job.client != 1)


def test_distilling_helpers_get_the_reference_too(model, start) -> None:
    world, executor = watched(make_world(model, methods=[GradDiff(retain="kl")], requests=[WHOLE]))
    unlearn(world, born(world, start), [0, 2], "grad_diff")
    assert {job.client: job.reference is not None for job in executor.jobs} == {0: True, 1: False, 2: True}


def test_each_request_has_its_own_reference(model, start) -> None:
    """The second request's rounds begin where the first one's ended, and compare with that."""
    second = Request(number=2, client=2, round=0, scope="client", record_ids=("c2/r0",))
    world, executor = watched(make_world(model, methods=[Npo(rounds=2)], requests=[WHOLE, second]))
    federation = born(world, start)
    adapters = []
    for number in (1, 2):
        for index in range(2):
            adapters.append(federation.adapter)
            step = make_step(len(adapters), [0, 3], UnlearningStep(branch="npo", request=number, index=index))
            assert run_round(federation, step, "npo", world.engine).request == number
    targets = [job for job in executor.jobs if job.reference is not None]
    assert [job.client for job in targets] == [1, 1, 2, 2]
    for job, expected in zip(targets, (0, 0, 2, 2), strict=True):
        assert same(job.reference, adapters[expected])
    assert federation.kept == {}


def test_methods_without_a_reference_store_none(model, start) -> None:
    world = make_world(model, methods=[GradDiff(rounds=2)], requests=[WHOLE])
    federation = born(world, start)
    unlearn(world, federation, [0, 2], "grad_diff")
    assert federation.kept == {}
    assert federation.stored_bytes() == 0


def test_a_reference_is_cleared_even_when_the_last_round_is_empty(model, start) -> None:
    world = make_world(model, methods=[Npo(rounds=1)], requests=[WHOLE], faults={0: raises, 1: raises})
    federation = born(world, start)
    outcome = unlearn(world, federation, [0], "npo")
    assert outcome.kind == "empty"
    assert outcome.request == 1
    assert federation.kept == {}


def test_a_failing_target_leaves_the_helpers_round(model, start) -> None:
    method = GradDiff(alpha=1.0)
    world = make_world(model, methods=[method], requests=[WHOLE], faults={1: raises})
    federation = born(world, start)
    outcome = unlearn(world, federation, [0, 2], "grad_diff")
    assert list(outcome.failures) == [1]
    expected = np.mean([update_of(model, start, client) for client in (0, 2)], axis=0)
    assert moved(federation, start) == pytest.approx(expected, abs=1e-6)


def test_weights_beyond_what_the_pipeline_allows_are_that_clients_failure(model, start) -> None:
    world = make_world(model, weighting="uniform", methods=[GradDiff(gamma=5.0)], requests=[WHOLE])
    outcome = unlearn(world, born(world, start), [0, 2], "grad_diff")
    assert "max_weight" in outcome.failures[1]


def test_an_ordinary_round_after_unlearning_is_ordinary(model, start) -> None:
    world = make_world(model, methods=[Npo(rounds=1)], requests=[WHOLE])
    federation = born(world, start)
    unlearn(world, federation, [0, 2], "npo")
    between = federation.adapter
    outcome = run_round(federation, make_step(2, [0, 2]), "npo", world.engine)
    assert (outcome.kind, outcome.request) == ("train", 0)
    expected = np.average(
        [update_of(model, between, client, round_=2) for client in (0, 2)], axis=0, weights=[4, 6]
    )
    assert moved(federation, between) == pytest.approx(expected, abs=1e-6)


def test_a_round_run_twice_has_one_outcome(model, start) -> None:
    """Counters included: they start at zero in each round."""
    world = make_world(model)
    assert one_round(world, start, [0, 1])[1] == one_round(world, start, [0, 1])[1]
    assert one_round(world, start, [0, 1])[1] != one_round(world, start, [0, 2])[1]


# ------------------------------------------------------------------------------ robust strategies

KRUM = strategy_of("krum", num_malicious_nodes=1)


def poisons(job: TrainJob, result: TrainResult) -> TrainResult:
    return replace(result, update=result.update * np.float32(1000))


def krum_by_hand(updates: list[np.ndarray]) -> np.ndarray:
    """The update with the least sum of squared distances to its n - f - 2 = 2 nearest."""
    scores = [sorted(float(np.sum((a - b) ** 2)) for b in updates)[1:3] for a in updates]
    return updates[int(np.argmin([sum(score) for score in scores]))]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (strategy_of("fedmedian"), lambda updates: np.median(updates, axis=0)),
        (strategy_of("fedtrimmedavg"), lambda updates: np.sort(updates, axis=0)[1:-1].mean(axis=0)),
        (KRUM, krum_by_hand),
    ],
    ids=lambda value: getattr(value, "name", None),
)
@pytest.mark.parametrize("faults", [None, {1: poisons}], ids=["honest", "poisoned"])
def test_a_robust_strategy_gets_each_update(model, start, strategy, expected, faults) -> None:
    world = make_world(model, clients=5, strategy=strategy, faults=faults)
    federation, outcome = one_round(world, start, [0, 1, 2, 3, 4])
    updates = [
        update_of(model, start, client) * (1000 if faults and client == 1 else 1) for client in range(5)
    ]
    assert moved(federation, start) == pytest.approx(expected(updates), abs=1e-6)
    assert (outcome.kind, outcome.contributors) == ("train", (0, 1, 2, 3, 4))
    assert (federation.round, federation.version) == (1, 1)


def test_one_poisoned_update_moves_the_mean_alone(model, start) -> None:
    longest = max(float(np.linalg.norm(update_of(model, start, client))) for client in range(5))
    for name in ("fedavg", "fedmedian", "fedtrimmedavg", "krum"):
        world = make_world(model, clients=5, strategy=strategy_of(name), faults={1: poisons})
        _, outcome = one_round(world, start, [0, 1, 2, 3, 4])
        assert (outcome.update_norm > 50 * longest) == (name == "fedavg")
        assert (outcome.update_norm <= 2 * longest) == (name != "fedavg")


def test_a_robust_strategy_gets_updates_as_they_were_clipped(model, start) -> None:
    world = make_world(model, clients=5, privacy=CLIP, strategy=KRUM, faults={1: poisons})
    _, outcome = one_round(world, start, [0, 1, 2, 3, 4])
    assert outcome.update_norm == pytest.approx(0.5, abs=1e-4)


def test_neither_order_matters_to_a_robust_strategy(model, start, monkeypatch) -> None:
    world = make_world(model, clients=5, strategy=KRUM)
    federation, _ = one_round(world, start, [0, 1, 2, 3, 4])
    send = world.engine.grid.send_and_receive
    monkeypatch.setattr(world.engine.grid, "send_and_receive", lambda messages: send(messages)[::-1])
    other, _ = one_round(world, start, [3, 1, 4, 0, 2])
    assert same(federation.adapter, other.adapter)


def test_a_cohort_too_small_for_a_robust_strategy_does_not_begin(model, start) -> None:
    federation, outcome = one_round(make_world(model, strategy=KRUM), start, [0, 1, 2, 3])
    assert (outcome.kind, outcome.contributors, outcome.failures) == ("empty", (), {})
    assert outcome.aborted is not None
    assert "at least 5 updates; there are 4" in outcome.aborted
    assert outcome.taken.messages == 0
    assert (federation.version, outcome.update_norm) == (0, 0.0)
    assert same(federation.adapter, start)


def test_too_few_updates_for_a_robust_strategy_are_an_empty_round(model, start) -> None:
    """The failure stays its client's, and the others are not asked again: they would not be more."""
    world = make_world(model, clients=5, strategy=KRUM, faults={1: raises})
    federation, outcome = one_round(world, start, [0, 1, 2, 3, 4])
    assert (outcome.kind, outcome.contributors, list(outcome.failures)) == ("empty", (), [1])
    assert outcome.aborted is not None
    assert "there are 4" in outcome.aborted
    assert outcome.taken.messages == 5
    assert federation.version == 0
    assert same(federation.adapter, start)


def test_nobody_is_no_reason_of_the_strategys(model, start) -> None:
    _, outcome = one_round(make_world(model, strategy=KRUM), start, [])
    assert (outcome.kind, outcome.aborted) == ("empty", None)


@pytest.mark.parametrize("server_state", ["rebase", "reset", "keep"])
def test_planned_weights_are_kept_to_under_a_robust_strategy(model, start, server_state) -> None:
    """A median of one that ascends and two that descend would drop the one; two are too few for Krum."""
    methods = [GradDiff(gamma=0.5, server_state=server_state)]
    after = {}
    for name in ("fedavg", "fedmedian", "krum"):
        world = make_world(
            model, methods=methods, requests=[WHOLE], strategy=strategy_of(name), weighting="uniform"
        )
        federation = born(world, start)
        outcome = unlearn(world, federation, [0, 2], "grad_diff")
        assert (outcome.kind, outcome.contributors) == ("unlearn", (0, 1, 2))
        after[name] = federation.adapter
    assert same(after["fedavg"], after["fedmedian"])
    assert same(after["fedavg"], after["krum"])


# ------------------------------------------------------------------------- several branches at once


@pytest.mark.parametrize("privacy", [[], MASKED], ids=["plain", "masked"])
@pytest.mark.parametrize("faults", [None, {2: raises}], ids=["well", "one-fails"])
def test_branches_that_send_together_come_out_as_alone(model, start, privacy, faults) -> None:
    """An ordinary round, one that begins with a question, and an empty one; phases and lengths differ."""
    methods = [Npo(rounds=1, alpha=1.0)]
    unlearning = UnlearningStep(branch="npo", request=1, index=0)
    steps = {
        "keep": make_step(1, [0, 1, 2, 3]),
        "npo": make_step(1, [0, 2, 3], unlearning),
        "leave": make_step(1, []),
    }

    def world() -> World:
        return make_world(
            model, privacy=privacy, weighting="uniform", methods=methods, requests=[WHOLE], faults=faults
        )

    joint = world()
    together = [(born(joint, start), step, branch) for branch, step in steps.items()]
    outcomes = run_rounds(together, joint.engine)
    for (federation, step, branch), outcome in zip(together, outcomes, strict=True):
        single = world()
        alone = born(single, start)
        assert run_round(alone, step, branch, single.engine) == outcome
        assert same(alone.adapter, federation.adapter)
        assert (2 in outcome.failures) == (faults is not None and branch != "leave")
    assert [outcome.kind for outcome in outcomes] == ["train", "unlearn", "empty"]


# -------------------------------------------------------------------- noise for whole clients

CENTRAL = [*CLIP, {"stage": "client_dp", "noise_multiplier": 0.5, "delta": 1e-5, "expected_cohort": 2}]


def spent(federation: Federation, client: int) -> float:
    return federation.ledger.epsilon(str(client), unit="client", delta=1e-5)


def test_a_round_to_which_nobody_comes_is_released_under_central_noise(model, start) -> None:
    world = make_world(model, privacy=CENTRAL, weighting="uniform")
    world = replace(
        world, engine=replace(world.engine, planner=replace(world.engine.planner, rosters={"keep": [(0, 1)]}))
    )
    federation, outcome = one_round(world, start, [])
    assert (outcome.kind, outcome.contributors, outcome.aborted) == ("train", (), None)
    assert np.linalg.norm(moved(federation, start)) > 0
    assert spent(federation, 0) == spent(federation, 1) > 0
    assert spent(federation, 2) == 0


def test_the_same_noise_of_the_server_in_every_branch_and_other_noise_in_every_round(model, start) -> None:
    world = make_world(model, privacy=CENTRAL, weighting="uniform")
    moves = []
    for branch, round_ in (("keep", 1), ("leave", 1), ("keep", 2)):
        federation = born(world, start)
        run_round(federation, make_step(round_, [0, 1]), branch, world.engine)
        moves.append(moved(federation, start))
    assert np.array_equal(moves[0], moves[1])
    assert not np.allclose(moves[0], moves[2])


def test_noise_of_the_server_is_charged_even_if_everybody_fails(model, start) -> None:
    world = make_world(model, privacy=CENTRAL, weighting="uniform", faults={0: raises, 1: gives_nan})
    federation, outcome = one_round(world, start, [0, 1])
    assert sorted(outcome.failures) == [0, 1]
    assert spent(federation, 0) > 0


def test_whoever_has_spent_its_budget_is_neither_drawn_nor_charged(model, start) -> None:
    # One ordinary round fits the budget, a second one does not.
    budget = [*CLIP, {"stage": "client_dp", "target_epsilon": 1.0, "delta": 1e-5}]
    nominal = {"rounds": 1}
    world = make_world(model, privacy=budget, weighting="uniform", nominal=nominal)
    federation = born(world, start)
    kinds = []
    for round_ in (1, 2):
        outcome = run_round(federation, make_step(round_, [0, 1]), "keep", world.engine)
        kinds.append((outcome.kind, outcome.exhausted))
    assert kinds == [("train", ()), ("empty", (0, 1))]
    assert 0.9 < spent(federation, 0) <= 1.0


def unlearning_under_central_noise(
    model, start, privacy, *, rate: float, **nominal
) -> tuple[Federation, RoundOutcome]:
    """Client 1 has gone and is asked to help unlearn it; of the others, any could have been drawn."""
    world = make_world(
        model,
        privacy=privacy,
        weighting="uniform",
        methods=[GradDiff(rounds=1, gamma=0.5, alpha=1.0)],
        requests=[WHOLE],
        nominal={"rounds": 1, **nominal},
    )
    planner = replace(world.engine.planner, rosters={"grad_diff": [(0, 2, 3)]}, participation=rate)
    world = replace(world, engine=replace(world.engine, planner=planner))
    federation = born(world, start)
    return federation, unlearn(world, federation, [0, 2], "grad_diff")


def test_whoever_is_forgotten_is_charged_for_the_round_that_forgets_it(model, start) -> None:
    federation, outcome = unlearning_under_central_noise(model, start, CENTRAL, rate=0.5, invitations=1)
    assert outcome.target
    alone = Mechanism(noise_multiplier=0.5, sampling="none")
    assert spent(federation, 1) == accounted(((alone, 1),), delta=1e-5)
    drawn = Mechanism(noise_multiplier=0.5, sampling_rate=0.5)
    assert spent(federation, 0) == spent(federation, 3) == accounted(((drawn, 1),), delta=1e-5)
    assert spent(federation, 1) > spent(federation, 0)


def test_whoever_cannot_afford_to_be_asked_is_not_charged(model, start) -> None:
    """The noise is for drawn clients; an invitation costs more."""
    budget = [*CLIP, {"stage": "client_dp", "target_epsilon": 3.0, "delta": 1e-5}]
    draw = Draw(kind="poisson", rate=0.1, population=4, nominal=4)
    federation, outcome = unlearning_under_central_noise(model, start, budget, rate=0.1, draws=(draw,))
    assert outcome.exhausted == (1,)
    assert spent(federation, 1) == 0
    assert 0 < spent(federation, 0) <= 3.0


def test_local_noise_is_charged_to_whoever_sends(model, start) -> None:
    local = [*CLIP, {"stage": "local_dp", "noise_multiplier": 2.0, "delta": 1e-5}]
    federation, _ = one_round(make_world(model, privacy=local, weighting="uniform"), start, [0, 2])
    assert spent(federation, 0) == spent(federation, 2) > 0
    assert spent(federation, 1) == 0


def test_shares_of_noise_are_charged_to_the_contributors_of_the_sum(model, start) -> None:
    shared = [
        *CLIP,
        {"stage": "distributed_dp", "noise_multiplier": 1.0, "delta": 1e-5, "min_survivors": 2},
        {"stage": "secure_aggregation"},
    ]
    world = make_world(model, privacy=shared, weighting="uniform", faults={1: raises})
    federation, outcome = one_round(world, start, [0, 1, 2, 3])
    assert outcome.contributors == (0, 2, 3)
    assert spent(federation, 1) == 0
    assert spent(federation, 0) > 0
    (release,) = federation.ledger.releases()
    assert release.noise_multiplier == pytest.approx(1.5**0.5)


def test_what_stages_keep_is_the_branchs_own(model, start, tmp_path) -> None:
    adaptive = [{"stage": "clip", "norm": 0.01, "quantile": 0.5}]
    world = make_world(model, privacy=adaptive, weighting="uniform")
    federation = born(world, start)
    other = federation.fork()
    norms = []
    for round_ in (1, 2):
        run_round(federation, make_step(round_, [0, 1, 2]), "keep", world.engine)
        norms.append(federation.privacy_state["clip.norm"])
    assert 0.01 < norms[0] < norms[1]
    assert other.privacy_state == {}
    federation.save(tmp_path)
    again = Federation.load(tmp_path, federation.algorithm, federation.adapter)
    assert again.privacy_state == federation.privacy_state


@pytest.mark.parametrize("privacy", [CENTRAL, MASKED], ids=["central", "masked"])
def test_every_message_can_be_serialised(model, start, privacy) -> None:
    plain, _ = one_round(make_world(model, privacy=privacy, weighting="uniform"), start, [0, 1, 2])
    through = make_world(model, privacy=privacy, weighting="uniform", serialise=True)
    assert same(one_round(through, start, [0, 1, 2])[0].adapter, plain.adapter)
