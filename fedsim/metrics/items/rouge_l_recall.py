"""How much of the right answer stands in the greedy one."""

from __future__ import annotations

from typing import ClassVar

from fedsim.metrics.arrays import FloatArray
from fedsim.metrics.metric import Answers, Metric


class RougeRecall(Metric):
    """ROUGE-L recall: ROUGE-L recall of the greedy answer."""

    name: ClassVar[str] = "rouge_l_recall"
    title: ClassVar[str] = "ROUGE-L recall"
    summary: ClassVar[str] = "ROUGE-L recall of the greedy answer"
    tracked: ClassVar[bool] = True
    reads_text: ClassVar[bool] = True

    @staticmethod
    def compute(answers: Answers) -> FloatArray | None:
        import numpy as np

        from fedsim.metrics.rouge import rouge

        pairs = zip(answers.right, answers.said, strict=True)
        return np.array([rouge(right, said).rouge_l_recall for right, said in pairs])
