"""How unlikely the right answer is."""

from __future__ import annotations

from typing import ClassVar

from fedsim.metrics.arrays import FloatArray
from fedsim.metrics.metric import Answers, Metric


class Nll(Metric):
    """Negative log-likelihood: nats per answer token."""

    name: ClassVar[str] = "nll"
    title: ClassVar[str] = "negative log-likelihood"
    summary: ClassVar[str] = "nats per answer token"
    unit: ClassVar[str] = "nats per token"
    known_is_higher: ClassVar[bool] = False

    @staticmethod
    def compute(answers: Answers) -> FloatArray | None:
        from fedsim.metrics.likelihood import mean_nll

        return mean_nll(answers.log_probs_IA, answers.mask_IA)
