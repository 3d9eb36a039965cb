"""Unlearning losses on two or three numbers, and the plans of the methods."""

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from fedsim.assembly.build import local_work
from fedsim.model.forward import Pass
from fedsim.training.objectives import MeanNll, ReferenceKl
from fedsim.unlearning.methods.grad_ascent import GradAscent, NegatedNll
from fedsim.unlearning.methods.grad_diff import GradDiff
from fedsim.unlearning.methods.kl_min import KlMin
from fedsim.unlearning.methods.npo import Npo, NpoLoss
from fedsim.unlearning.methods.retrain import Retrain
from fedsim.unlearning.methods.simnpo import SimNpo, SimNpoLoss
from fedsim.unlearning.protocol import LossMethodConfig, MethodConfig, Work
from fedsim.unlearning.registry import METHODS, MethodChoice
from fedsim.unlearning.request import Request
from privacy import Capability

REQUEST = Request(number=1, client=3, round=5, scope="client", record_ids=("a", "b"))
LABELS = torch.tensor([[-100, 0, 1], [-100, 2, -100]])


def passed(nll: list[float], count: list[int]) -> Pass:
    """A pass with given losses; what stands in its logits is not looked at."""
    return Pass(
        logits_NV=torch.zeros(sum(count), 2),
        targets_N=torch.zeros(sum(count), dtype=torch.int64),
        used_BA=torch.arange(max(count)) < torch.tensor(count)[:, None],
        nll_B=torch.tensor(nll, requires_grad=True),
        count_B=torch.tensor(count),
    )


def slopes(loss, current: Pass, reference: Pass | None = None) -> list[float]:
    (found,) = torch.autograd.grad(loss(current, reference).sum(), current.nll_B)
    return found.tolist()


def logits(seed: int) -> torch.Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed))


def test_a_pass_counts_answer_tokens() -> None:
    """Uniform logits over four words: log 4 nats per answer token."""
    found = Pass.of(torch.zeros(2, 3, 4), LABELS)
    assert found.count_B.tolist() == [2, 1]
    assert found.nll_B.tolist() == pytest.approx([2 * math.log(4), math.log(4)])
    assert found.mean_nll.tolist() == pytest.approx([math.log(4)] * 2)


def test_a_sample_without_answer_tokens_is_zero() -> None:
    found = Pass.of(torch.zeros(1, 3, 4), torch.full((1, 3), -100))
    assert found.mean_nll.tolist() == [0.0]


def test_mean_nll_and_its_negative() -> None:
    current = passed([6.0, 2.0], [3, 1])
    assert MeanNll()(current, None).tolist() == [2.0, 2.0]
    assert NegatedNll()(current, None).tolist() == [-2.0, -2.0]
    assert slopes(MeanNll(), current) == pytest.approx([1 / 3, 1.0])
    assert slopes(NegatedNll(), current) == pytest.approx([-1 / 3, -1.0])


def test_npo_by_hand() -> None:
    """Margins 0 and 2 with beta 0.5: -(2 / 0.5) log sigma(0) and log sigma(1)."""
    current, reference = passed([4.0, 5.0], [2, 2]), passed([4.0, 3.0], [2, 2])
    expected = [4 * math.log(2), 4 * math.log(1 + math.exp(-1))]
    assert NpoLoss(0.5)(current, reference).tolist() == pytest.approx(expected)


def test_npo_ascends_and_fades_as_the_model_moves_away() -> None:
    """dL/dl = -2 sigma(-beta margin): -1 at the reference, towards 0 far from it."""
    margins = [0.0, 2.0, 8.0, 100.0]
    found = slopes(NpoLoss(0.5), passed(margins, [1] * 4), passed([0.0] * 4, [1] * 4))
    assert found == pytest.approx([-2 / (1 + math.exp(0.5 * m)) for m in margins])
    assert all(slope <= 0 for slope in found)
    assert found[0] == -1.0


@pytest.mark.parametrize("margin", [-1.0, 0.0, 3.0])
def test_npo_becomes_gradient_ascent_as_beta_vanishes(margin: float) -> None:
    """The gradient of -l, with l the sequence's NLL."""
    (found,) = slopes(NpoLoss(1e-6), passed([5.0 + margin], [1]), passed([5.0], [1]))
    assert found == pytest.approx(-1.0, abs=1e-5)


def test_simnpo_by_hand() -> None:
    """NLL per token 2 and 1, delta 1, beta 0.5: margins 1 and 0."""
    current = passed([4.0, 3.0], [2, 3])
    expected = [4 * math.log(1 + math.exp(-0.5)), 4 * math.log(2)]
    assert SimNpoLoss(0.5, 1.0)(current, None).tolist() == pytest.approx(expected)
    found = slopes(SimNpoLoss(0.5, 1.0), current)
    assert found == pytest.approx([-2 / (1 + math.exp(0.5)) / 2, -1 / 3])


def test_simnpo_is_npo_with_a_constant_for_reference() -> None:
    """On sequences of one token, and the reference's NLL equal to delta."""
    simple = SimNpoLoss(0.7, 1.5)(passed([2.0, 4.0], [1, 1]), None)
    full = NpoLoss(0.7)(passed([2.0, 4.0], [1, 1]), passed([1.5, 1.5], [1, 1]))
    assert simple.tolist() == pytest.approx(full.tolist())


def test_losses_stay_finite_far_out() -> None:
    far = passed([1e6, 0.0], [1, 1])
    for loss in (NpoLoss(0.1), SimNpoLoss(4.5, 0.0)):
        assert torch.isfinite(loss(far, passed([0.0, 1e4], [1, 1]))).all()


def test_kl_is_zero_at_the_reference() -> None:
    here = logits(1).requires_grad_()
    current, reference = Pass.of(here, LABELS), Pass.of(logits(1), LABELS)
    loss = ReferenceKl()(current, reference)
    assert loss.tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    (slope,) = torch.autograd.grad(loss.sum(), here)
    assert slope.abs().max() < 1e-6


def test_kl_by_hand() -> None:
    """Two words: reference (1/2, 1/2), model (1/4, 3/4); KL = log 2 - log(3) / 2."""
    labels = torch.tensor([[-100, 1, -100]])
    model = torch.zeros(1, 3, 2)
    model[0, 0] = torch.tensor([0.25, 0.75]).log()
    model[0, 1] = 50.0 * torch.tensor([1.0, 0.0])
    loss = ReferenceKl()(Pass.of(model, labels), Pass.of(torch.zeros(1, 3, 2), labels))
    assert loss.tolist() == pytest.approx([math.log(2) - math.log(3) / 2])


def test_kl_is_positive_and_pulls_back() -> None:
    here = logits(1).requires_grad_()
    reference = Pass.of(logits(2), LABELS)
    loss = ReferenceKl()(Pass.of(here, LABELS), reference)
    assert (loss > 0).all()
    (slope,) = torch.autograd.grad(loss.sum(), here)
    nearer = ReferenceKl()(Pass.of(here.detach() - 0.1 * slope, LABELS), reference)
    assert (nearer < loss).all()


@pytest.mark.parametrize("loss", [MeanNll(), NegatedNll(), NpoLoss(0.3), SimNpoLoss(2.0, 0.5), ReferenceKl()])
def test_one_samples_loss_does_not_depend_on_the_others(loss) -> None:
    current, reference = Pass.of(logits(1), LABELS), Pass.of(logits(2), LABELS)
    alone = [
        loss(
            Pass.of(logits(1)[i : i + 1], LABELS[i : i + 1]), Pass.of(logits(2)[i : i + 1], LABELS[i : i + 1])
        )
        for i in range(2)
    ]
    assert loss(current, reference).tolist() == pytest.approx(torch.cat(alone).tolist(), abs=1e-6)


# ---------------------------------------------------------------------------------- methods

PLANNING = [GradAscent(), GradDiff(), Npo(), SimNpo(), GradDiff(alpha=0.0, gamma=2.0, combine="mean", lr=0.1)]


def test_names() -> None:
    assert list(METHODS)[:4] == ["retrain", "grad_ascent", "grad_diff", "kl_min"]
    for name, method in METHODS.items():
        assert method().method == method().branch == name
        assert method(label="other").branch == "other"
        assert method.title
        assert method.summary
        chosen = TypeAdapter(MethodChoice).validate_python({"method": name})
        assert type(chosen) is method


@pytest.mark.parametrize("method", PLANNING)
def test_a_plan_is_a_pure_function(method: LossMethodConfig) -> None:
    """Told again, from JSON, in another order: the same rounds, so a killed run can go on."""
    again = METHODS[method.method].model_validate_json(method.model_dump_json())
    rounds = range(method.rounds_for(REQUEST))
    plans = {index: method.plan(REQUEST, index) for index in rounds}
    assert {index: again.plan(REQUEST, index) for index in reversed(rounds)} == plans


def test_plans_by_hand() -> None:
    plan = Npo(gamma=0.5, alpha=2.0, lr=0.1, epochs=3, combine="mean").plan(REQUEST, 0)
    assert plan.target == Work(weight=0.5, lr=0.1, epochs=3)
    assert plan.helper == Work(weight=2.0)
    assert plan.combine == "mean"
    alone = GradAscent().plan(REQUEST, 0)
    assert alone.helper is None
    assert alone.combine == "sum"


def test_roles_have_their_losses() -> None:
    assert isinstance(GradDiff().local("target", 0).objective, NegatedNll)
    assert isinstance(GradDiff().local("helper", 0).objective, MeanNll)
    assert isinstance(GradDiff(retain="kl").local("helper", 0).objective, ReferenceKl)
    assert isinstance(KlMin().local("target", 0).objective, NegatedNll)
    assert isinstance(KlMin().local("helper", 0).objective, ReferenceKl)
    assert Npo(beta=0.3).local("target", 0).objective == NpoLoss(0.3)
    assert SimNpo(beta=2, delta=1).local("target", 0).objective == SimNpoLoss(2, 1)


@pytest.mark.parametrize("method", PLANNING)
def test_an_objective_survives_the_way_to_the_client(method: MethodConfig) -> None:
    for role in ("target", "helper"):
        assert local_work(method.model_dump_json(), role, 0) == method.local(role, 0)


def test_retrain_plans_nothing() -> None:
    assert Retrain().rounds_for(REQUEST) == 0
    assert Retrain.promise == "exact"
    with pytest.raises(NotImplementedError):
        Retrain().plan(REQUEST, 0)


def test_needs_say_who_must_cooperate() -> None:
    assert GradAscent.needs == {Capability.CLIENT_COOPERATION}
    for method in (GradDiff, Npo, SimNpo):
        assert method.needs == {Capability.CLIENT_COOPERATION, Capability.PEER_COOPERATION}


@pytest.mark.parametrize(
    ("method", "bad"),
    [(Npo, {"beta": 0}), (GradDiff, {"gamma": 0}), (GradAscent, {"alpha": -1}), (SimNpo, {"rounds": 0}),
     (Npo, {"temperature": 1}), (GradDiff, {"label": "Two Words"})],
)  # fmt: skip
def test_parameters_out_of_range(method: type[MethodConfig], bad: dict) -> None:
    with pytest.raises(ValidationError):
        method(**bad)
