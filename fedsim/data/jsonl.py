"""Plain JSON lines: one question and answer a line, with a column that says whose it is.

    {"client": "clinic-a", "question": "Who leads the ward?", "answer": "Dr Adeyemi"}

Optional columns of a line: ``subject``, ``fact``, ``paraphrased_question``, ``paraphrased_answer`` and
``perturbed_answers`` (a list). Files of holdout and public records have the same columns and need no
client. ``fedsim.data.names`` says how clients are called and numbered.

>>> import tempfile
>>> from pathlib import Path
>>> path = Path(tempfile.mkdtemp()) / "mine.jsonl"
>>> _ = path.write_text('{"client": "a", "question": "Capital of France?", "answer": "Paris"}')
>>> load_jsonl(path).clients[0][0].record_id
'mine:1'
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from fedsim.data.names import ClientNames, Speller
from fedsim.data.records import Corpus, Record
from fedsim.data.rows import Row, read_rows, shown

OPTIONAL = ("subject", "fact", "paraphrased_question", "paraphrased_answer", "perturbed_answers")

_TABLE_NAMES = ("holdout", "retain", "model")
"""What the tables of results call something else, besides what begins with ``forget:`` or ``client:``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Columns:
    """What the columns of the files are called."""

    client: str
    question: str
    answer: str
    ignored: tuple[str, ...]

    @property
    def known(self) -> tuple[str, ...]:
        return (self.client, self.question, self.answer, *OPTIONAL, *self.ignored)


def load_jsonl(
    path: Path,
    *,
    client_column: str = "client",
    question_column: str = "question",
    answer_column: str = "answer",
    ignore_columns: tuple[str, ...] = (),
    holdout: Path | None = None,
    public: Path | None = None,
) -> Corpus:
    """A corpus from JSON lines; subjects default to the client, or to the file.

    Record ids are ``<file stem>:<line>``; where two of the files have one stem, ``holdout-`` or ``public-``
    stands before it. A public file whose stem is a name that the tables use otherwise (``holdout``) is called
    ``public-<stem>``.

    Raises:
        ValueError: a line cannot be used; says file, line, rule and nearest choice.
    """
    columns = _Columns(
        client=client_column, question=question_column, answer=answer_column, ignored=ignore_columns
    )
    spelt = Speller(column=client_column)
    found: dict[str, list[Record]] = {}
    for row in read_rows(path):
        client = spelt.read(row)
        found.setdefault(client, []).append(_record(row, columns, owner=client, source=path.stem))
    if not found:
        raise ValueError(f"{path}: has no rows; at least one client with one row is needed")
    names = ClientNames.of(found)
    kept = _other_than(holdout.stem, {path.stem}, "holdout") if holdout else ""
    known = _other_than(public.stem, {path.stem, kept}, "public") if public else ""
    return Corpus(
        clients={number: tuple(found[name]) for number, name in names.by_id.items()},
        holdout=_unowned(holdout, columns, kept) if holdout else (),
        public={_subject(public): _unowned(public, columns, known)} if public else {},
        names=names,
    )


def public_records(path: Path) -> dict[str, tuple[Record, ...]]:
    """The records of a public file, in columns of the usual names, by the subject that tables call them.

    Raises:
        ValueError: a line cannot be used, as for ``load_jsonl``.
    """
    columns = _Columns(client="client", question="question", answer="answer", ignored=())
    return {_subject(path): _unowned(path, columns, path.stem)}


def _subject(public: Path) -> str:
    """The name of a public file in the tables."""
    taken = public.stem in _TABLE_NAMES or public.stem.startswith(("forget:", "client:"))
    return f"public-{public.stem}" if taken else public.stem


def _other_than(stem: str, taken: Collection[str], prefix: str) -> str:
    return f"{prefix}-{stem}" if stem in taken else stem


def _unowned(path: Path, columns: _Columns, source: str) -> tuple[Record, ...]:
    records = tuple(_record(row, columns, owner=path.stem, source=source) for row in read_rows(path))
    if not records:
        raise ValueError(f"{path}: has no rows; write at least one, or leave the file out")
    return records


def _record(row: Row, columns: _Columns, *, owner: str, source: str) -> Record:
    question, answer = row.text(columns.question), row.text(columns.answer)
    row.only(columns.known)
    fact, paraphrase = row.optional_text("fact"), row.optional_text("paraphrased_answer")
    wrong = row.texts("perturbed_answers")
    if fact is not None and fact not in answer:
        forms = "; their Unicode forms differ, write both in NFC" if _nfc(fact) in _nfc(answer) else ""
        raise ValueError(
            f"{row.where}: fact={shown(fact)} must be a substring of the answer {shown(answer)}{forms}"
        )
    for place, text in enumerate(wrong):
        if text in (answer, paraphrase):
            raise ValueError(
                f"{row.where}: perturbed_answers[{place}]={shown(text)} is the right answer; "
                "list wrong ones alone"
            )
    return Record(
        record_id=f"{source}:{row.line}",
        subject=row.optional_text("subject") or owner,
        question=question,
        answer=answer,
        fact=fact,
        paraphrased_question=row.optional_text("paraphrased_question"),
        paraphrased_answer=paraphrase,
        perturbed_answers=wrong,
    )


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)
