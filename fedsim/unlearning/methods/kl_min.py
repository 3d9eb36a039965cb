"""KL minimisation (Maini et al., 2024, arXiv:2401.06121): ascend, and stay as one was on the rest.

The forgetting client ascends as in GradDiff; the others hold the KL divergence from the model at the request
to the current one at zero, so they are not taught further. Known weakness: as with every ascent, the loss has
no lower bound, and what the others do not hold drifts.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from fedsim.training.objectives import Objective
from fedsim.unlearning.methods.grad_ascent import NegatedNll
from fedsim.unlearning.protocol import LossMethodConfig


class KlMin(LossMethodConfig):
    """The forgetting client ascends while the others stay near the model at the request."""

    title: ClassVar[str] = "KL minimisation"
    summary: ClassVar[str] = "ascend on the forgotten records; the others hold their answers' distributions"

    method: Literal["kl_min"] = "kl_min"
    retain: Literal["nll", "kl"] = "kl"
    """Retain term: negative log-likelihood, or KL to the model at the time of the request."""

    def forget_objective(self) -> Objective:
        return NegatedNll()
