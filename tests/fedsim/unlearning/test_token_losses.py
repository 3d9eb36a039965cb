"""Losses that look at single answer tokens: by hand on three words, and against finite differences."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.model.forward import Pass
from fedsim.training.objectives import MeanNll, ReferenceKl
from fedsim.unlearning.methods.ce_u import OthersAlone
from fedsim.unlearning.methods.grad_ascent import NegatedNll
from fedsim.unlearning.methods.idk_nll import RefusalNll
from fedsim.unlearning.methods.ugradsl import SmoothedAscent
from fedsim.unlearning.methods.undial import LoweredTeacher
from fedsim.unlearning.methods.wga import WeightedAscent

LABELS = torch.tensor([[-100, 0, 1], [-100, 2, -100]])
"""Two samples: the answer tokens are 0 and 1; and 2."""
LOSSES = [
    LoweredTeacher(2.0),
    OthersAlone(),
    WeightedAscent(1.0),
    WeightedAscent(5.0, 1.0),
    SmoothedAscent(-0.3, 50.0),
    NegatedNll(),
    RefusalNll(),
]


def pass_of(logits: torch.Tensor) -> Pass:
    return Pass.of(logits, LABELS)


def drawn(seed: int) -> torch.Tensor:
    return torch.randn(2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def one_token(probabilities: list[float]) -> Pass:
    """One sample of one answer token, which is word 0."""
    logits = torch.tensor(probabilities, dtype=torch.float64).log()[None, None].repeat(1, 2, 1)
    return Pass.of(logits.requires_grad_(), torch.tensor([[-100, 0]]))


def slope(loss, current: Pass, reference: Pass | None = None) -> list[float]:
    """The gradient with respect to the three logits."""
    (found,) = torch.autograd.grad(loss(current, reference).sum(), current.logits_NV)
    return found[0].tolist()


def test_tokens_have_their_own_losses() -> None:
    found = pass_of(torch.zeros(2, 3, 3))
    assert found.targets_N.tolist() == [0, 1, 2]
    assert found.token_nll.tolist() == pytest.approx([math.log(3)] * 3)
    assert found.sample_sums(found.token_nll).tolist() == pytest.approx(found.nll_B.tolist())
    assert found.take(torch.tensor([1, 0])).targets_N.tolist() == [2, 0, 1]
    assert found.samples(1, 2).targets_N.tolist() == [2]


def test_undial_by_hand() -> None:
    """Teacher (1/2, 1/4, 1/4), its first logit lowered by log 2: an aim of (1/3, 1/3, 1/3)."""
    current, teacher = one_token([0.5, 0.3, 0.2]), one_token([0.5, 0.25, 0.25])
    loss = LoweredTeacher(math.log(2))(current, teacher)
    assert loss.tolist() == pytest.approx([-(math.log(0.5) + math.log(0.3) + math.log(0.2)) / 3])
    third = 1 / 3
    assert slope(LoweredTeacher(math.log(2)), current, teacher) == pytest.approx(
        [0.5 - third, 0.3 - third, 0.2 - third]
    )


def test_undial_without_lowering_is_the_divergence_from_the_teacher() -> None:
    """Up to the teacher's own entropy, so gradients are equal."""
    here = drawn(1).requires_grad_()
    teacher = pass_of(drawn(2))
    losses = [loss(pass_of(here), teacher).sum() for loss in (LoweredTeacher(0.0), ReferenceKl())]
    slopes = [torch.autograd.grad(loss, here)[0] for loss in losses]
    assert torch.allclose(*slopes, atol=1e-12)


def test_ce_u_by_hand() -> None:
    """Belief (1/2, 3/10, 1/5) without the first word: (0, 3/5, 2/5). The true word's slope is its belief."""
    current = one_token([0.5, 0.3, 0.2])
    expected = -(0.6 * math.log(0.3) + 0.4 * math.log(0.2))
    assert OthersAlone()(current, None).tolist() == pytest.approx([expected])
    assert slope(OthersAlone(), current) == pytest.approx([0.5, 0.3 - 0.6, 0.2 - 0.4])


def test_weighted_ascent_by_hand() -> None:
    """p = 1/2: weights 1/2 and (1/2)^5 (1/2), of log 2 nats; no gradient through the weight."""
    current = one_token([0.5, 0.3, 0.2])
    assert WeightedAscent(1.0)(current, None).tolist() == pytest.approx([-math.log(2) / 2])
    assert WeightedAscent(5.0, 1.0)(current, None).tolist() == pytest.approx([-math.log(2) / 64])
    assert slope(WeightedAscent(1.0), current) == pytest.approx([0.25, -0.15, -0.1])


def test_weighted_ascent_without_weights_is_gradient_ascent() -> None:
    current = pass_of(drawn(3))
    assert WeightedAscent(0.0)(current, None).tolist() == pytest.approx(NegatedNll()(current, None).tolist())


def test_weighted_ascent_leaves_alone_what_is_certain_or_lost() -> None:
    """SatImp's weight vanishes at both ends, also where rounding takes p to 1 or 0."""
    for logit in (-800.0, 800.0):
        logits = torch.tensor([[[logit, 0.0, 0.0]] * 2]).requires_grad_()
        found = slope(WeightedAscent(5.0, 1.0), Pass.of(logits, torch.tensor([[-100, 0]])))
        assert found == pytest.approx([0.0, 0.0, 0.0], abs=1e-12)


def test_smoothed_ascent_by_hand() -> None:
    """Belief (1/2, 3/10, 1/5), a = -0.3: 1.3 of the true word's nats less 0.3 of the mean over all three."""
    current = one_token([0.5, 0.3, 0.2])
    mean = -(math.log(0.5) + math.log(0.3) + math.log(0.2)) / 3
    assert SmoothedAscent(-0.3, 9.0)(current, None).tolist() == pytest.approx(
        [-(1.3 * math.log(2) - 0.3 * mean)]
    )
    assert SmoothedAscent(-0.3, 0.1)(current, None).tolist() == [-0.1]
    assert slope(SmoothedAscent(-0.3, 0.1), current) == [0.0, 0.0, 0.0]


def test_a_refusals_loss_is_ordinary_training_on_refusals() -> None:
    assert RefusalNll().needs.answers == "refusal"
    current = pass_of(drawn(4))
    assert RefusalNll()(current, None).tolist() == MeanNll()(current, None).tolist()


def frozen_weights(loss, at: Pass):
    """The loss as a function whose gradient autograd must give: its detached parts held at ``at``."""
    if isinstance(loss, WeightedAscent):
        p_N = at.token_nll.detach().neg().exp()
        weight_N = p_N**loss.sharpness * (1 - p_N) ** loss.doubt
        return lambda current, _: -current.sample_means(current.sample_sums(weight_N * current.token_nll))
    if isinstance(loss, OthersAlone):
        aim_NV = torch.softmax(
            at.logits_NV.detach().scatter(-1, at.targets_N[:, None], -float("inf")), dim=-1
        )
        return lambda current, _: current.sample_means(
            current.sample_sums(-(aim_NV * torch.log_softmax(current.logits_NV, -1)).sum(-1))
        )
    return loss


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_gradients_agree_with_finite_differences(loss, seed: int) -> None:
    here, teacher, step = drawn(seed), pass_of(drawn(seed + 1)), 1e-6
    leaf = here.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(loss(pass_of(leaf), teacher).sum(), leaf)
    function = frozen_weights(loss, pass_of(here))
    for place in np.ndindex(*here.shape):
        shifted = [here.clone(), here.clone()]
        shifted[0][place] += step
        shifted[1][place] -= step
        up, down = (float(function(pass_of(logits), teacher).sum()) for logits in shifted)
        assert float(slopes[place]) == pytest.approx((up - down) / (2 * step), abs=1e-7)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_one_samples_loss_does_not_depend_on_the_others(loss) -> None:
    whole = loss(pass_of(drawn(1)), pass_of(drawn(2)))
    alone = [loss(*(Pass.of(drawn(seed)[i : i + 1], LABELS[i : i + 1]) for seed in (1, 2))) for i in range(2)]
    assert whole.tolist() == pytest.approx(torch.cat(alone).tolist())
