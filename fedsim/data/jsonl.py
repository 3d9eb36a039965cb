"""Plain JSON lines: one question and answer a line, with a column that says whose it is.

    {"client": "clinic-a", "question": "Who leads the ward?", "answer": "Dr Adeyemi"}

Clients are numbered 0, 1, ... in the order in which their names first appear. Optional columns of a
line: ``subject``, ``fact``, ``paraphrased_question``, ``paraphrased_answer`` and ``perturbed_answers``
(a list). Files of holdout and public records have the same columns and need no client.

>>> import tempfile
>>> from pathlib import Path
>>> path = Path(tempfile.mkdtemp()) / "mine.jsonl"
>>> _ = path.write_text('{"client": "a", "question": "Capital of France?", "answer": "Paris"}')
>>> load_jsonl(path).clients[0][0].record_id
'mine:1'
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.data.records import Corpus, Record


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One JSON object and where it stands, for errors that can name the place."""

    path: Path
    line: int
    fields: Mapping[str, Any]

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line}"

    def text(self, column: str) -> str:
        """The non-empty string in ``column``."""
        value = self.fields.get(column)
        if column not in self.fields:
            nearest = difflib.get_close_matches(column, self.fields, n=1, cutoff=0.0)
            hint = f"; nearest column: {nearest[0]!r}" if nearest else ""
            raise ValueError(f"{self.where}: column {column!r} is missing{hint}")
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{self.where}: {column}={value!r} must be a non-empty string")
        return value

    def optional_text(self, column: str) -> str | None:
        return None if self.fields.get(column) is None else self.text(column)

    def texts(self, column: str) -> tuple[str, ...]:
        """The list of strings in ``column``; empty when the column is absent."""
        value = self.fields.get(column)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ValueError(f"{self.where}: {column}={value!r} must be a list of strings")
        return tuple(value)


def read_rows(path: Path) -> Iterator[Row]:
    """The JSON objects of a file, one a line; blank lines are skipped, lines count from 1."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; {_siblings(path)}")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}:{number}: not JSON ({error.msg} at column {error.colno}); "
                    "each line must be one JSON object"
                ) from None
            if not isinstance(fields, dict):
                raise ValueError(f"{path}:{number}: {line.strip()[:40]!r} must be a JSON object")
            yield Row(path=path, line=number, fields=fields)


def _siblings(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no folder {path.parent} either"
    names = [entry.name for entry in path.parent.iterdir() if entry.is_file()]
    nearest = difflib.get_close_matches(path.name, names, n=1, cutoff=0.0)
    return f"nearest in that folder: {nearest[0]!r}" if nearest else f"folder {path.parent} has no files"


def load_jsonl(
    path: Path,
    *,
    client_column: str = "client",
    question_column: str = "question",
    answer_column: str = "answer",
    holdout: Path | None = None,
    public: Path | None = None,
) -> Corpus:
    """A corpus from JSON lines; record ids are ``<file stem>:<line>``, subjects default to the client."""
    columns = (question_column, answer_column)
    clients: dict[str, list[Record]] = {}
    for row in read_rows(path):
        client = _client_name(row, client_column)
        clients.setdefault(client, []).append(_record(row, columns, owner=client))
    if not clients:
        raise ValueError(f"{path}: has no rows; at least one client with one row is needed")
    return Corpus(
        clients={number: tuple(records) for number, records in enumerate(clients.values())},
        holdout=_unowned(holdout, columns),
        public={public.stem: _unowned(public, columns)} if public else {},
    )


def _client_name(row: Row, column: str) -> str:
    value = row.fields.get(column)
    # A client may be a number in JSON; 3 and "3" are then the same client.
    return str(value) if type(value) is int else row.text(column)


def _unowned(path: Path | None, columns: tuple[str, str]) -> tuple[Record, ...]:
    return tuple(_record(row, columns, owner=path.stem) for row in read_rows(path)) if path else ()


def _record(row: Row, columns: tuple[str, str], *, owner: str) -> Record:
    question, answer = (row.text(column) for column in columns)
    fact = row.optional_text("fact")
    if fact is not None and fact not in answer:
        raise ValueError(f"{row.where}: fact={fact!r} must be a substring of the answer {answer!r}")
    return Record(
        record_id=f"{row.path.stem}:{row.line}",
        subject=row.optional_text("subject") or owner,
        question=question,
        answer=answer,
        fact=fact,
        paraphrased_question=row.optional_text("paraphrased_question"),
        paraphrased_answer=row.optional_text("paraphrased_answer"),
        perturbed_answers=row.texts("perturbed_answers"),
    )
