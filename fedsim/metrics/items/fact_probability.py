"""How likely the fact in the right answer is."""

from __future__ import annotations

from typing import ClassVar

from fedsim.metrics.arrays import FloatArray
from fedsim.metrics.metric import Answers, Metric


class FactProbability(Metric):
    """Fact probability: geometric mean per token over the tokens that carry the fact."""

    name: ClassVar[str] = "fact_probability"
    title: ClassVar[str] = "fact probability"
    summary: ClassVar[str] = "geometric mean per token over the tokens that carry the fact"
    tracked: ClassVar[bool] = True
    headline: ClassVar[bool] = True

    @staticmethod
    def compute(answers: Answers) -> FloatArray | None:
        from fedsim.metrics.likelihood import mean_nll, probability

        return probability(mean_nll(answers.log_probs_IA, answers.fact_IA))
