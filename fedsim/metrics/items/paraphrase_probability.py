"""How likely the right answer is when asked otherwise."""

from __future__ import annotations

from typing import ClassVar

from fedsim.metrics.arrays import FloatArray
from fedsim.metrics.metric import Answers, Metric


class ParaphraseProbability(Metric):
    """Paraphrase probability: probability of the answer to the paraphrased question."""

    name: ClassVar[str] = "paraphrase_probability"
    title: ClassVar[str] = "paraphrase probability"
    summary: ClassVar[str] = "probability of the answer to the paraphrased question"
    tracked: ClassVar[bool] = True
    headline: ClassVar[bool] = True
    needs: ClassVar[str] = "paraphrased questions"

    @staticmethod
    def compute(answers: Answers) -> FloatArray | None:
        from fedsim.metrics.likelihood import probability

        return probability(answers.asked_otherwise_I)
