"""A multiple choice among the paraphrase and the wrong answers."""

from __future__ import annotations

from typing import ClassVar

from fedsim.metrics.arrays import FloatArray
from fedsim.metrics.metric import Answers, Metric


class ChoiceProbability(Metric):
    """Choice probability: the right answer's share among right and wrong ones."""

    name: ClassVar[str] = "choice_probability"
    title: ClassVar[str] = "choice probability"
    summary: ClassVar[str] = "the right answer's share among right and wrong ones"
    needs: ClassVar[str] = "wrong answers"

    @staticmethod
    def compute(answers: Answers) -> FloatArray | None:
        from fedsim.metrics.likelihood import choice_probability

        return choice_probability(answers.truth_I, answers.wrong_IW)
