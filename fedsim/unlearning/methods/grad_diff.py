"""Gradient difference (Liu et al., 2022, arXiv:2203.12817): ascend on the forgotten, descend on the rest."""

from __future__ import annotations

from typing import ClassVar, Literal

from fedsim.training.objectives import Objective
from fedsim.unlearning.methods.grad_ascent import NegatedNll
from fedsim.unlearning.protocol import LossMethodConfig


class GradDiff(LossMethodConfig):
    """The forgetting client ascends while the round's cohort supplies the retain term."""

    title: ClassVar[str] = "GradDiff"
    summary: ClassVar[str] = "ascend on the forgotten records while the others train on theirs"

    method: Literal["grad_diff"] = "grad_diff"

    def forget_objective(self) -> Objective:
        return NegatedNll()
