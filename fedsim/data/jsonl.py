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

from dataclasses import dataclass
from pathlib import Path

from fedsim.data.columns import Columns, record_of
from fedsim.data.names import ClientNames, Speller, other_than, table_name
from fedsim.data.records import Corpus, Record
from fedsim.data.rows import Row, read_rows

OPTIONAL = ("subject", "fact", "paraphrased_question", "paraphrased_answer", "perturbed_answers")


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

    @property
    def read(self) -> Columns:
        return Columns(
            question=self.question,
            answer=self.answer,
            subject="subject",
            fact="fact",
            paraphrased_question="paraphrased_question",
            paraphrased_answer="paraphrased_answer",
            wrong_answers="perturbed_answers",
        )


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
    kept = other_than(holdout.stem, {path.stem}, "holdout") if holdout else ""
    known = other_than(public.stem, {path.stem, kept}, "public") if public else ""
    return Corpus(
        clients={number: tuple(found[name]) for number, name in names.by_id.items()},
        holdout=_unowned(holdout, columns, kept) if holdout else (),
        public={table_name(public.stem): _unowned(public, columns, known)} if public else {},
        names=names,
    )


def public_records(path: Path) -> dict[str, tuple[Record, ...]]:
    """The records of a public file, in columns of the usual names, by the subject that tables call them.

    Raises:
        ValueError: a line cannot be used, as for ``load_jsonl``.
    """
    columns = _Columns(client="client", question="question", answer="answer", ignored=())
    return {table_name(path.stem): _unowned(path, columns, path.stem)}


def _unowned(path: Path, columns: _Columns, source: str) -> tuple[Record, ...]:
    records = tuple(_record(row, columns, owner=path.stem, source=source) for row in read_rows(path))
    if not records:
        raise ValueError(f"{path}: has no rows; write at least one, or leave the file out")
    return records


def _record(row: Row, columns: _Columns, *, owner: str, source: str) -> Record:
    record = record_of(row, columns.read, record_id=f"{source}:{row.line}", owner=owner)
    row.only(columns.known)
    return record
