"""From a row to a record: which column says what, and what no record may say.

>>> from pathlib import Path
>>> row = Row(path=Path("mine.csv"), line=2, fields={"q": "Capital of France?", "a": "Paris"})
>>> record_of(row, Columns(question="q", answer="a"), record_id="mine:2", owner="b").answer
'Paris'
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from fedsim.data.records import Record
from fedsim.data.rows import Row, shown


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """What the columns of a table are called; None for one that the table does not have."""

    question: str
    answer: str
    subject: str | None = None
    fact: str | None = None
    paraphrased_question: str | None = None
    paraphrased_answer: str | None = None
    wrong_answers: str | None = None


def record_of(
    row: Row, columns: Columns, *, record_id: str, owner: str, question: str | None = None
) -> Record:
    """The record that a row holds; its subject is its owner unless a column says otherwise.

    ``question`` is asked in the place of the row's own.

    Raises:
        ValueError: a column is missing or says what no record can; says where.
    """
    question = row.text(columns.question) if question is None else question
    answer = row.text(columns.answer)
    fact, paraphrase = _text(row, columns.fact), _text(row, columns.paraphrased_answer)
    wrong = () if columns.wrong_answers is None else row.texts(columns.wrong_answers)
    if fact is not None and fact not in answer:
        forms = "; their Unicode forms differ, write both in NFC" if _nfc(fact) in _nfc(answer) else ""
        raise ValueError(
            f"{row.where}: {columns.fact}={shown(fact)} must be a substring of the answer "
            f"{shown(answer)}{forms}"
        )
    for place, text in enumerate(wrong):
        if text in (answer, paraphrase):
            raise ValueError(
                f"{row.where}: {columns.wrong_answers}[{place}]={shown(text)} is the right answer; "
                "list wrong ones alone"
            )
    return Record(
        record_id=record_id,
        subject=_text(row, columns.subject) or owner,
        question=question,
        answer=answer,
        fact=fact,
        paraphrased_question=_text(row, columns.paraphrased_question),
        paraphrased_answer=paraphrase,
        perturbed_answers=wrong,
    )


def _text(row: Row, column: str | None) -> str | None:
    return None if column is None else row.optional_text(column)


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)
