"""What a metric is: its names, which way knowledge points, and how it follows from a model's answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedsim.metrics.arrays import BoolArray, FloatArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What a model makes of a probe's records. I records, A answer positions, W wrong answers.

    ``log_probs_IA`` are of the right answers' tokens, in nats; ``mask_IA`` marks those of an answer's own,
    ``fact_IA`` those that carry the fact, ``hits_IA`` those that are the argmax. ``nll_I``, ``truth_I``,
    ``asked_otherwise_I`` and ``wrong_IW`` are mean NLLs over the tokens of an answer with its end marker: of
    the right one, of its paraphrase, of the right one to the paraphrased question, and of the wrong ones; NaN
    where there is none. ``said`` are the greedy answers as text, empty where none were generated, and
    ``right`` the right ones.
    """

    log_probs_IA: FloatArray
    mask_IA: BoolArray
    fact_IA: BoolArray
    hits_IA: BoolArray
    nll_I: FloatArray
    truth_I: FloatArray
    asked_otherwise_I: FloatArray
    wrong_IW: FloatArray
    said: Sequence[str] = ()
    right: Sequence[str] = ()


class Metric:
    """A number of each record, or of a whole model; subclasses say which.

    A metric that does not override ``compute`` compares several models or sets and is computed where these
    are at hand.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    """The name in a sentence."""
    summary: ClassVar[str]
    unit: ClassVar[str] = "0 to 1"
    known_is_higher: ClassVar[bool] = True
    """Whether it rises as knowledge grows."""
    tracked: ClassVar[bool] = False
    """Whether its trajectory is measured against the references."""
    headline: ClassVar[bool] = False
    """Whether titles and verdicts may quote it; it must be from 0 to 1 and rise with knowledge."""
    reads_text: ClassVar[bool] = False
    """Whether it needs generated answers."""
    needs: ClassVar[str] = ""
    """What a record must have for it beside question and answer, in the plural."""

    @staticmethod
    def compute(answers: Answers) -> FloatArray | None:
        """The metric of each record, (I,), NaN where it does not apply."""
        return None
