"""A membership score: the least likely tokens of the answer."""

from __future__ import annotations

from typing import ClassVar

from fedsim.metrics.arrays import FloatArray
from fedsim.metrics.metric import Answers, Metric


class MinK(Metric):
    """Min-K score: mean log-probability of the least likely tokens."""

    name: ClassVar[str] = "min_k"
    title: ClassVar[str] = "Min-K score"
    summary: ClassVar[str] = "mean log-probability of the least likely tokens"
    unit: ClassVar[str] = "nats per token"

    @staticmethod
    def compute(answers: Answers) -> FloatArray | None:
        from fedsim.metrics.membership import min_k_score

        return min_k_score(answers.log_probs_IA, answers.mask_IA)
