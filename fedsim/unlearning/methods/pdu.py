"""Primal-dual unlearning (PDU; Entesari et al., 2025, arXiv:2506.05314): flatten, as far as the rest allows.

At the forgetting client, logits are flattened: the mean over answer tokens of (max z - mean z)^2. That the
retain loss L_r stays below epsilon is a constraint; its multiplier lambda weighs the retain term and goes up
while L_r is above: lambda <- max(0, lambda + eta (L_r - epsilon)).

Here the retain data lie with the other clients, and whoever is forgotten may have none left, so the server
holds lambda: the weight of the helpers' mean update, which starts at ``alpha`` and moves once a round. L_r is
the mean of the helpers' losses over that round's training, which they tell; masks and differential privacy
refuse that. Deviations: the paper's terms share one gradient a step, ours are updates of separate trainings,
so epsilon and eta do not carry over; released code flattens logits at all positions, not answers' alone;
lambda has a largest value. Known weakness: flat answers are conspicuous.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from fedsim.config import ConfigError
from fedsim.model.vectors import Arrays
from fedsim.training.objectives import LocalWork, Needs, Objective
from fedsim.unlearning.desk import Desk
from fedsim.unlearning.protocol import LossMethodConfig, Role, RoundPlan, Work
from fedsim.unlearning.request import Request
from privacy import Capability

if TYPE_CHECKING:
    import torch

    from fedsim.model.forward import Pass

DUAL = "dual"
"""What the request keeps: ``lambda`` and ``epsilon``, (1,) each."""


@dataclass(frozen=True)
class FlattenedLogits:
    """Squared distance of the largest logit from the mean one, per answer token, per sample."""

    needs: ClassVar[Needs] = Needs()

    def __call__(self, current: Pass, reference: Pass | None) -> torch.Tensor:
        margin_N = current.logits_NV.amax(-1) - current.logits_NV.mean(-1)
        return current.token_means(margin_N.square())


class Pdu(LossMethodConfig):
    """Flatten the forgotten answers' logits under a bound on the retain loss, kept by a multiplier."""

    title: ClassVar[str] = "PDU"
    summary: ClassVar[str] = "flatten the forgotten answers' logits; a multiplier holds the others' loss"
    needs: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.CLIENT_COOPERATION, Capability.PEER_COOPERATION, Capability.INDIVIDUAL_WEIGHTS}
    )

    method: Literal["pdu"] = "pdu"
    epsilon: float | None = Field(default=None, ge=0)
    """Largest retain loss, nats per token; what the helpers tell in the first round when left out."""
    eta: float = Field(default=1.0, gt=0)
    """How far the multiplier moves in a round, per nat by which the retain loss is off."""
    warmup: int = Field(default=0, ge=0)
    """Rounds in which the multiplier stays at alpha."""
    most: float = Field(default=100.0, gt=0)
    """Largest multiplier."""

    @model_validator(mode="after")
    def _starts_below(self) -> Pdu:
        if self.retain_on != "helpers":
            raise ConfigError("the multiplier weighs what other clients send; choose helpers", "retain_on")
        if self.alpha > self.most:
            raise ConfigError(
                f"alpha={self.alpha:g}, where the multiplier starts, is above most={self.most:g}; "
                "raise most, or lower alpha",
                "alpha",
            )
        return self

    def forget_objective(self) -> Objective:
        return FlattenedLogits()

    def local(self, role: Role, index: int) -> LocalWork:
        return replace(super().local(role, index), tells=role == "helper")

    def plan(self, request: Request, index: int) -> RoundPlan:
        return replace(super().plan(request, index), helper=Work(weight=self.alpha, most=self.most))

    def weigh(self, plan: RoundPlan, kept: Mapping[str, Arrays]) -> RoundPlan:
        if DUAL not in kept or plan.helper is None:
            return plan
        return replace(plan, helper=replace(plan.helper, weight=float(kept[DUAL]["lambda"][0])))

    def remember(self, request: Request, index: int, desk: Desk) -> Mapping[str, Arrays]:
        if desk.told is None:
            return {}
        epsilon, multiplier = desk.told if self.epsilon is None else self.epsilon, self.alpha
        if DUAL in desk.kept:
            epsilon, multiplier = (float(desk.kept[DUAL][name][0]) for name in ("epsilon", "lambda"))
        if index >= self.warmup:
            multiplier = min(max(0.0, multiplier + self.eta * (desk.told - epsilon)), self.most)
        values = {"lambda": multiplier, "epsilon": epsilon}
        return {DUAL: {name: np.array([value], dtype=np.float32) for name, value in values.items()}}
