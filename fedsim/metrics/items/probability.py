"""How likely the right answer is."""

from __future__ import annotations

from typing import ClassVar

from fedsim.metrics.arrays import FloatArray
from fedsim.metrics.metric import Answers, Metric


class Probability(Metric):
    """Answer probability: geometric mean per token over the answer."""

    name: ClassVar[str] = "probability"
    title: ClassVar[str] = "answer probability"
    summary: ClassVar[str] = "geometric mean per token over the answer"
    tracked: ClassVar[bool] = True
    headline: ClassVar[bool] = True

    @staticmethod
    def compute(answers: Answers) -> FloatArray | None:
        from fedsim.metrics.likelihood import probability

        return probability(answers.nll_I)
