"""IdkDPO: its loss by hand, what it prefers over rounds, and that rounds resume."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from typer.testing import CliRunner

from fedsim.app.cli import app
from fedsim.federation.rounds import run_round
from fedsim.federation.state import Federation
from fedsim.life.steps import UnlearningStep
from fedsim.model.forward import Pass, forward
from fedsim.model.text import collate
from fedsim.training.batched import BatchedExecutor
from fedsim.training.cohorts import CohortLimit
from fedsim.training.config import LocalConfig
from fedsim.unlearning.methods.idk_dpo import IdkDpo, IdkDpoLoss
from fedsim.unlearning.registry import METHODS, MethodChoice
from fedsim.unlearning.request import Request
from tests.e2e.runs import BRIEF, broken_off, differences, merged, run, write_scenario
from tests.world import World, born, make_records, make_step, make_world, same

IDS = tuple(record.record_id for record in make_records(1, 5))
WHOLE = Request(number=1, client=1, round=0, scope="client", record_ids=IDS)
METHOD = IdkDpo(rounds=2, epochs=3, lr=0.2)
LOCAL = LocalConfig(epochs=1, batch_size=2, lr=0.02, optimizer="sgd")


def pass_of(seed: int) -> Pass:
    """Two samples with 2 and 1 answer tokens over four words."""
    labels = torch.tensor([[-100, 0, 1], [-100, 2, -100]])
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Pass.of(logits, labels)


def test_the_loss_by_numpy() -> None:
    """From logits: log-softmax, sums over each sample's tokens, the sigmoid written out."""

    def log_likelihoods(seed: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64).numpy()
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return np.array([log_p[0, 0, 0] + log_p[0, 1, 1], log_p[1, 0, 2]])

    beta, (lose, win, lose_ref, win_ref) = 0.7, [log_likelihoods(seed) for seed in range(4)]
    margin = (win - win_ref) - (lose - lose_ref)
    expected = -2 / beta * np.log(1 / (1 + np.exp(-beta * margin)))
    passes = [pass_of(seed) for seed in range(4)]
    current, reference = (replace(passes[i], refusal=passes[i + 1]) for i in (0, 2))
    assert IdkDpoLoss(beta)(current, reference).tolist() == pytest.approx(expected.tolist())


def losses_at(answer: list[float], refusal: list[float]) -> tuple[Pass, list[torch.Tensor]]:
    sides = [torch.tensor(values, requires_grad=True) for values in (answer, refusal)]
    found = [
        Pass(
            logits_NV=torch.zeros(len(side), 2),
            targets_N=torch.zeros(len(side), dtype=torch.int64),
            used_BA=torch.ones(len(side), 1, dtype=torch.bool),
            nll_B=side,
            count_B=torch.ones(len(side), dtype=torch.int64),
        )
        for side in sides
    ]
    return replace(found[0], refusal=found[1]), sides


def test_it_raises_the_answers_nll_as_much_as_it_lowers_the_refusals_and_fades() -> None:
    """dL/dl = -2 sigma(-beta margin) of the answer, its opposite of the refusal: 1 in size at the request."""
    current, sides = losses_at([3.0, 5.0, 103.0], [2.0, 1.0, 2.0])
    reference, _ = losses_at([3.0, 3.0, 3.0], [2.0, 2.0, 2.0])
    loss = IdkDpoLoss(0.5)(current, reference)
    ascent, descent = torch.autograd.grad(loss.sum(), sides)
    margins = [0.0, 3.0, 100.0]
    assert ascent.tolist() == pytest.approx([-2 / (1 + np.exp(0.5 * margin)) for margin in margins])
    assert descent.tolist() == pytest.approx([-slope for slope in ascent.tolist()])
    assert torch.isfinite(loss).all()


def test_it_is_a_method_like_any_other() -> None:
    assert METHODS["idk_dpo"] is IdkDpo
    chosen = TypeAdapter(MethodChoice).validate_python({"method": "idk_dpo", "beta": 0.3})
    assert chosen.local("target", 0).objective == IdkDpoLoss(0.3)
    assert chosen.local("helper", 0).objective.needs.answers == "own"


# --------------------------------------------------------------------------------------- rounds


def world_of(model, *, batched: bool = False, **more) -> World:
    world = make_world(model, methods=[METHOD], requests=[WHOLE], local=LOCAL, **more)
    if batched:
        limit = CohortLimit(clients=8, tokens=100_000)
        object.__setattr__(world.engine.runtime, "executor", BatchedExecutor(model, limit))
    return world


def unlearn(world: World, federation: Federation, index: int) -> None:
    step = make_step(index + 1, [0, 2], UnlearningStep(branch="idk_dpo", request=1, index=index))
    outcome = run_round(federation, step, "idk_dpo", world.engine)
    assert (outcome.contributors, outcome.failures) == ((0, 1, 2), {})


def told(world: World, adapter) -> tuple[float, float]:
    """Mean NLL of client 1's answers, and of the refusals to its questions."""
    world.model.load(adapter)
    runtime, found = world.engine.runtime, []
    objective = METHOD.forget_objective()
    for pairs in (runtime.pairs[1], runtime.refusals(1, range(len(IDS)), 7, objective)):
        with torch.no_grad():
            batch = collate(pairs, pad_id=world.model.pad_id)
            found.append(float(forward(world.model.module, batch).nll_B.mean()))
    return found[0], found[1]


@pytest.mark.parametrize("batched", [False, True])
def test_two_rounds_forget_the_answers_and_learn_to_refuse(model, start, batched: bool) -> None:
    """The control: two ordinary rounds of the same helpers leave the answers alone."""
    world = world_of(model, batched=batched)
    federation, control = born(world, start), born(world, start)
    before = told(world, start)
    for index in range(2):
        unlearn(world, federation, index)
        run_round(control, make_step(index + 1, [0, 2]), "leave", world.engine)
    after, alone = told(world, federation.adapter), told(world, control.adapter)
    assert after[0] > before[0] + 1
    assert after[1] < before[1] - 1
    assert after[0] > alone[0] + 1
    assert after[1] < alone[1] - 1
    assert federation.kept == {}


def test_both_executors_agree(model, start) -> None:
    found = []
    for batched in (False, True):
        world = world_of(model, batched=batched)
        federation = born(world, start)
        unlearn(world, federation, 0)
        found.append(np.concatenate([value.ravel() for value in federation.adapter.values()]))
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_a_saved_federation_goes_on_with_the_same_bytes(model, start, tmp_path) -> None:
    world = world_of(model)
    whole = born(world, start)
    unlearn(world, whole, 0)
    whole.save(tmp_path)
    again = Federation.load(tmp_path, whole.algorithm, {k: v.copy() for k, v in whole.adapter.items()})
    unlearn(world, whole, 1)
    unlearn(world_of(model), again, 1)
    assert same(again.adapter, whole.adapter)


def test_it_is_masked_like_any_other_and_refused_beside_example_dp(model, start) -> None:
    masked = world_of(model, weighting="uniform", privacy=[
        {"stage": "clip", "norm": 1.0}, {"stage": "secure_aggregation", "min_cohort": 2}])  # fmt: skip
    unlearn(masked, born(masked, start), 0)
    private = [{"stage": "example_dp", "noise_multiplier": 1.0, "clip_norm": 1.0, "delta": 1e-3}]
    world = world_of(model, weighting="uniform", privacy=private)
    step = make_step(1, [0, 2], UnlearningStep(branch="idk_dpo", request=1, index=0))
    outcome = run_round(born(world, start), step, "idk_dpo", world.engine)
    assert "compares two answers" in outcome.failures[1]


def test_a_run_that_breaks_off_between_its_rounds_ends_with_the_same_bytes(tmp_path, monkeypatch) -> None:
    timeline = [*BRIEF["timeline"][:-1], {"train": {"rounds": 2}}]
    compare = [{"method": "idk_dpo", "rounds": 2}]
    scenario = merged(BRIEF, timeline=timeline, compare=compare, execution__checkpoint_every=1)
    whole = run(tmp_path / "whole", scenario)
    assert differences(whole, broken_off(tmp_path / "broken", scenario, monkeypatch, round_=3)) == []


def test_beside_example_dp_it_is_refused_before_a_run(tmp_path) -> None:
    stage = {"stage": "example_dp", "noise_multiplier": 1.0, "delta": 1e-3, "clip_norm": 1.0}
    methods = [{"method": name, "rounds": 1} for name in ("npo", "idk_dpo")]
    scenario = merged(BRIEF, compare=methods, privacy=[stage], federation__weighting="uniform")
    path = write_scenario(tmp_path, scenario)
    result = CliRunner().invoke(app, ["run", str(path), "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "compare[1]: idk_dpo cannot be had with example_dp" in result.stderr
    assert not (tmp_path / "run").exists()
