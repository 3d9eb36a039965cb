"""PDU: its loss by hand, its multiplier by hand, and rounds in which the multiplier weighs."""

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from typer.testing import CliRunner

from fedsim.app.cli import app
from fedsim.federation.reports import TOLD
from fedsim.federation.rounds import run_round
from fedsim.federation.state import Federation
from fedsim.life.steps import UnlearningStep
from fedsim.model.forward import Pass, forward
from fedsim.model.text import collate
from fedsim.training.batched import BatchedExecutor
from fedsim.training.cohorts import CohortLimit
from fedsim.training.config import LocalConfig
from fedsim.unlearning.desk import Desk
from fedsim.unlearning.methods.pdu import FlattenedLogits, Pdu
from fedsim.unlearning.registry import METHODS, MethodChoice
from fedsim.unlearning.request import Request
from tests.e2e.runs import BRIEF, broken_off, differences, merged, run, write_scenario
from tests.world import World, born, make_records, make_step, make_world, same

IDS = tuple(record.record_id for record in make_records(1, 5))
WHOLE = Request(number=1, client=1, round=0, scope="client", record_ids=IDS)
LABELS = torch.tensor([[-100, 0, 1], [-100, 2, -100]])
LOCAL = LocalConfig(epochs=1, batch_size=2, lr=0.02, optimizer="sgd")


def logits(seed: int) -> torch.Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_loss_by_numpy() -> None:
    z = logits(1).numpy()
    squares = (z.max(-1) - z.mean(-1)) ** 2
    expected = [(squares[0, 0] + squares[0, 1]) / 2, squares[1, 0]]
    assert FlattenedLogits()(Pass.of(logits(1), LABELS), None).tolist() == pytest.approx(expected)


def test_flat_logits_have_no_loss_and_slopes_lead_there() -> None:
    """Slope by hand: 2 (max - mean) (1 - 1/V) at the largest, -2 (max - mean) / V at the others."""
    assert FlattenedLogits()(Pass.of(torch.full((2, 3, 4), 7.0), LABELS), None).tolist() == [0.0, 0.0]
    here = torch.tensor([[[3.0, 0.0, 0.0, 1.0], [9.0] * 4]], requires_grad=True)
    labels = torch.tensor([[-100, 2]])
    loss = FlattenedLogits()(Pass.of(here, labels), None)
    assert loss.tolist() == [4.0]
    (slope,) = torch.autograd.grad(loss.sum(), here)
    assert slope[0, 0].tolist() == pytest.approx([3.0, -1.0, -1.0, -1.0])
    assert slope[0, 1].tolist() == [0.0] * 4


# ----------------------------------------------------------------------------------- multiplier


def multipliers(method: Pdu, told: list[float | None]) -> list[float]:
    """The helpers' weight in each round and the next, as rounds tell these losses."""
    kept: dict = {}
    found = []
    for index, loss in enumerate([*told, None]):
        weighed = method.weigh(method.plan(WHOLE, index), kept)
        assert weighed.helper is not None
        found.append(weighed.helper.weight)
        kept = kept | dict(method.remember(WHOLE, index, Desk(adapter={}, kept=kept, told=loss)))
    return found


def test_the_multiplier_by_hand() -> None:
    """It goes up by eta times what is above epsilon, down by what is below, never beyond 0 and most."""
    method = Pdu(epsilon=0.5, eta=2.0, alpha=1.0, most=4.0)
    assert multipliers(method, [1.0, 0.25, None, 0.0, 0.0, 9.0]) == [1.0, 2.0, 1.5, 1.5, 0.5, 0.0, 4.0]


def test_without_epsilon_the_first_rounds_loss_is_the_bound() -> None:
    assert multipliers(Pdu(eta=1.0), [0.5, 0.75, 0.5, 0.25]) == [1.0, 1.0, 1.25, 1.25, 1.0]


def test_it_stays_while_it_warms_up() -> None:
    assert multipliers(Pdu(epsilon=0.0, warmup=2), [0.5, 0.5, 0.5]) == [1.0, 1.0, 1.0, 1.5]


def test_it_is_a_method_like_any_other() -> None:
    assert METHODS["pdu"] is Pdu
    chosen = TypeAdapter(MethodChoice).validate_python({"method": "pdu", "retain": "kl", "alpha": 0})
    assert chosen.local("helper", 0).tells
    assert not chosen.local("target", 0).tells
    assert chosen.plan(WHOLE, 0).helper is not None  # they tell, whatever they weigh
    with pytest.raises(ValidationError, match="raise most, or lower alpha"):
        Pdu(alpha=2.0, most=1.0)


# --------------------------------------------------------------------------------------- rounds


def world_of(model, method: Pdu, *, batched: bool = False, local: LocalConfig = LOCAL) -> World:
    nominal = {"metrics": (TOLD,)}
    world = make_world(model, methods=[method], requests=[WHOLE], local=local, nominal=nominal)
    if batched:
        limit = CohortLimit(clients=8, tokens=100_000)
        object.__setattr__(world.engine.runtime, "executor", BatchedExecutor(model, limit))
    return world


def unlearn(world: World, federation: Federation, index: int) -> None:
    step = make_step(index + 1, [0, 2], UnlearningStep(branch="pdu", request=1, index=index))
    outcome = run_round(federation, step, "pdu", world.engine)
    assert (outcome.contributors, outcome.failures) == ((0, 1, 2), {})


def flatness(world: World, adapter) -> tuple[float, float]:
    """The mean loss of client 1's answers, and their mean likelihood per token."""
    world.model.load(adapter)
    with torch.no_grad():
        found = forward(world.model.module, collate(world.engine.runtime.pairs[1], pad_id=world.model.pad_id))
    return float(FlattenedLogits()(found, None).mean()), float((-found.mean_nll).exp().mean())


@pytest.mark.parametrize("batched", [False, True])
def test_two_rounds_flatten_what_is_forgotten(model, start, batched: bool) -> None:
    """After the answers were learnt; the control goes on without the client, and keeps them."""
    method = Pdu(rounds=2, epochs=3, lr=0.05)
    learning = LOCAL.model_copy(update={"epochs": 20, "lr": 0.2})
    teaching = world_of(model, method, local=learning)
    taught = born(teaching, start)
    run_round(taught, make_step(1, [1]), "keep", teaching.engine)
    world = world_of(model, method, batched=batched)
    federation, control = born(world, taught.adapter), born(world, taught.adapter)
    before = flatness(world, taught.adapter)
    for index in range(2):
        unlearn(world, federation, index)
        run_round(control, make_step(index + 1, [0, 2]), "leave", world.engine)
    after, alone = flatness(world, federation.adapter), flatness(world, control.adapter)
    assert after[0] < 0.7 * min(before[0], alone[0])
    assert after[1] < 0.7 * min(before[1], alone[1])
    assert federation.kept == {}


def test_both_executors_agree_on_adapter_and_multiplier(model, start) -> None:
    method = Pdu(epsilon=0.0)
    found = []
    for batched in (False, True):
        world = world_of(model, method, batched=batched)
        federation = born(world, start)
        unlearn(world, federation, 0)
        (multiplier,) = federation.kept[1]["dual"]["lambda"]
        assert multiplier > 1
        unlearn(world, federation, 1)
        vector = np.concatenate([value.ravel() for value in federation.adapter.values()])
        found.append(np.append(vector, multiplier))
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)


def test_the_multiplier_weighs(model, start) -> None:
    """A bound that is out of reach raises it; one that is never reached lets it fall to nothing."""
    adapters = []
    for epsilon in (0.0, 30.0):
        world = world_of(model, Pdu(epsilon=epsilon))
        federation = born(world, start)
        unlearn(world, federation, 0)
        unlearn(world, federation, 1)
        adapters.append(federation)
    assert adapters[0].kept[1]["dual"]["lambda"][0] > 1
    assert adapters[1].kept[1]["dual"]["lambda"][0] == 0
    assert not same(adapters[0].adapter, adapters[1].adapter)


def test_a_saved_federation_goes_on_with_the_same_bytes(model, start, tmp_path) -> None:
    world = world_of(model, Pdu(epsilon=0.0))
    whole = born(world, start)
    unlearn(world, whole, 0)
    whole.save(tmp_path)
    again = Federation.load(tmp_path, whole.algorithm, {k: v.copy() for k, v in whole.adapter.items()})
    for index in (1, 2):
        unlearn(world, whole, index)
        unlearn(world_of(model, Pdu(epsilon=0.0)), again, index)
    assert same(again.adapter, whole.adapter)


# ------------------------------------------------------------------------------------ whole runs

LIFE = [
    {"join": {"clients": "0-2"}},
    {"train": {"rounds": 1}},
    {"forget": {"client": 1}},
    {"train": {"rounds": 2}},
]
RUN = merged(
    BRIEF,
    timeline=LIFE,
    compare=[{"method": "pdu", "rounds": 2, "epsilon": 0.0}],
    execution__checkpoint_every=1,
)


def test_a_run_that_breaks_off_between_its_rounds_ends_with_the_same_bytes(tmp_path, monkeypatch) -> None:
    """The multiplier is in the checkpoint."""
    whole = run(tmp_path / "whole", RUN)
    assert differences(whole, broken_off(tmp_path / "broken", RUN, monkeypatch, round_=3)) == []


@pytest.mark.parametrize(
    ("stages", "reason"),
    [
        ([{"stage": "secure_aggregation", "min_cohort": 2}], "needs ['individual_weights']"),
        ([{"stage": "client_dp", "noise_multiplier": 1.0, "delta": 1e-3}], "client_dp does not account"),
        (
            [{"stage": "example_dp", "noise_multiplier": 1.0, "clip_norm": 1.0, "delta": 1e-3}],
            "example_dp does not account",
        ),
    ],
    ids=["masks", "client_dp", "example_dp"],
)
def test_where_losses_cannot_be_told_it_is_refused_before_a_run(tmp_path, stages, reason: str) -> None:
    clip = [] if stages[0]["stage"] == "example_dp" else [{"stage": "clip", "norm": 1.0}]
    scenario = merged(RUN, privacy=[*clip, *stages], federation__weighting="uniform")
    path = write_scenario(tmp_path, scenario)
    result = CliRunner().invoke(app, ["run", str(path), "--out", str(tmp_path / "run")])
    assert result.exit_code == 2, result.output
    assert "compare[0]: " in result.stderr
    assert reason in result.stderr
    assert not (tmp_path / "run").exists()
