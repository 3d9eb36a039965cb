"""What every data source gives: records, grouped into clients, holdout and public knowledge.

The fields are TOFU's (Maini et al., 2024, arXiv:2401.06121): a question with its answer, a
paraphrase of each, and wrong answers that match the paraphrased answer in form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from fedsim.data.names import ClientNames


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """What somebody says in a conversation. A ``trained`` turn is learned, although nobody asks for it."""

    role: Literal["system", "user", "assistant"]
    text: str
    trained: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One question and answer about one subject; the unit that can be forgotten.

    ``record_id`` is stable and unique in its source ("author-0031/birthplace"): every random draw that
    concerns the record is keyed by it. ``fact`` is the part of ``answer`` that carries the fact (a
    substring), or None when the whole answer does. Sources without paraphrases or wrong answers leave
    them empty; metrics that need them skip such records.

    ``earlier`` is what a conversation holds before the question. A ``plain`` record is text with nothing
    around it: its question is empty, and all of its answer is trained, or its question is what stands before
    a continuation.
    """

    record_id: str
    subject: str
    question: str
    answer: str
    fact: str | None = None
    paraphrased_question: str | None = None
    paraphrased_answer: str | None = None
    perturbed_answers: tuple[str, ...] = ()
    plain: bool = False
    earlier: tuple[Turn, ...] = ()

    @property
    def context(self) -> tuple[Turn, ...]:
        """What was said before the question, when another answer than the record's own follows."""
        return tuple(replace(turn, trained=False) for turn in self.earlier)

    def __post_init__(self) -> None:
        if self.fact is not None and self.fact not in self.answer:
            raise ValueError(
                f"fact={self.fact!r} of record {self.record_id!r} must be a substring of its answer "
                f"{self.answer!r}; leave it out when the whole answer is the fact"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Everything a scenario can train on or ask about.

    ``clients`` maps a client id (0, 1, ...) to its own records, and ``names`` to what the data call it.
    ``holdout`` was never trained on by anybody: the yardstick for "never knew". ``public`` maps a name to
    records the base knows before the federation starts: utility is measured on them. ``asked`` maps a name to
    records that are asked about and nothing else: neither trained nor counted as utility.
    """

    clients: Mapping[int, tuple[Record, ...]]
    holdout: tuple[Record, ...]
    public: Mapping[str, tuple[Record, ...]]
    asked: Mapping[str, tuple[Record, ...]] = field(default_factory=dict)
    names: ClientNames = field(default_factory=ClientNames)
