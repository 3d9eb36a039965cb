r"""Data sets as people have them: on the hub, or in files of JSON, Parquet or CSV, in four formats.

A row is a question and an answer (``pairs``), an instruction with an input and an output (``alpaca``), a
conversation (``messages``), or plain ``text``. Whose a row is, a column says; or rows are dealt out. A record
is called by its table and row: ``train:7``.

>>> import tempfile
>>> path = Path(tempfile.mkdtemp()) / "mine.csv"
>>> _ = path.write_text("ward,question,answer\na,Who leads?,Dr Adeyemi\nb,Who leads?,Dr Lindqvist\n")
>>> data = HfData(source="hf", files=(path,), client_column="ward")
>>> {client: records[0].answer for client, records in load_hf(data, seed=1).clients.items()}
{0: 'Dr Adeyemi', 1: 'Dr Lindqvist'}
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fedsim.config import ConfigError
from fedsim.data.columns import Columns, record_of
from fedsim.data.config import HfData
from fedsim.data.conversations import exchange, turns_of
from fedsim.data.dealing import deal
from fedsim.data.hub import hub_rows
from fedsim.data.names import ClientNames, Speller, other_than, table_name
from fedsim.data.records import Corpus, Record
from fedsim.data.rows import Row, is_blank
from fedsim.data.tables import SUFFIXES, columns_of, read_table

Table = list[tuple[str, Row]]
"""Rows with the names by which records are called."""


def load_hf(data: HfData, *, seed: int) -> Corpus:
    """The corpus of a scenario.

    Raises:
        ValueError: a table, a column or a row cannot be used; a ConfigError where a key is at fault.
    """
    table = _clients_table(data)[: data.rows]
    _check_columns(data, [row for _, row in table], owned=True)
    owners = _owners(data, table, seed)
    names = ClientNames.of(dict.fromkeys(owners) if data.client_column else sorted(set(owners), key=int))
    numbers = {name: number for number, name in names.by_id.items()}
    held: dict[int, list[Record]] = {number: [] for number in names.by_id}
    for owner, (called, row) in zip(owners, table, strict=True):
        held[numbers[owner]].append(_record(data, row, called, owner))
    taken = {called.rsplit(":", 1)[0] for called, _ in table}
    holdout = _other(data, "holdout", taken)
    public = _other(data, "public", taken | {called.rsplit(":", 1)[0] for called, _ in holdout})
    return Corpus(
        clients={number: tuple(records) for number, records in held.items()},
        holdout=tuple(_record(data, row, called, "holdout") for called, row in holdout),
        public=_public(data, public),
        names=names,
    )


# --------------------------------------------------------------------------------------- tables


def _clients_table(data: HfData) -> Table:
    if data.name is not None:
        split = data.split or "train"
        return _named(split.split("[")[0], hub_rows(data.name, split, data.config_name))
    table: Table = []
    taken: set[str] = set()
    for place, path in enumerate(data.files):
        stem = other_than(path.stem, taken, str(place + 1))
        taken.add(stem)
        table += _named(stem, read_table(path))
    return table


def _named(table: str, rows: Sequence[Row]) -> Table:
    return [(f"{table}:{row.line}", row) for row in rows]


def _other(data: HfData, key: str, taken: set[str]) -> Table:
    """The table of rows of the holdout, or public ones: a file, or a split of the same data set."""
    wanted = getattr(data, key)
    if wanted is None:
        return []
    path = Path(wanted)
    if path.suffix.lower() in SUFFIXES:
        rows, stem = read_table(path), path.stem
    elif data.name is None:
        raise ConfigError(f"{key}={wanted!r} must be a file that ends in one of {', '.join(SUFFIXES)}", key)
    else:
        rows, stem = hub_rows(data.name, wanted, data.config_name, key=key), wanted.split("[")[0]
    _check_columns(data, rows, owned=False)
    return _named(other_than(stem, taken, key), rows)


def _public(data: HfData, table: Table) -> dict[str, tuple[Record, ...]]:
    if not table:
        return {}
    name = table_name(table[0][0].rsplit(":", 1)[0])
    return {name: tuple(_record(data, row, called, name) for called, row in table)}


# -------------------------------------------------------------------------------------- columns


def _columns(data: HfData) -> Columns:
    alpaca = data.format == "alpaca"
    return Columns(
        question=data.question_column or ("instruction" if alpaca else "question"),
        answer=data.answer_column or ("output" if alpaca else "answer"),
        subject=data.subject_column,
        fact=data.fact_column,
        paraphrased_question=data.paraphrased_question_column,
        paraphrased_answer=data.paraphrased_answer_column,
        wrong_answers=data.wrong_answers_column,
    )


def _wanted(data: HfData, *, owned: bool) -> Iterator[tuple[str, str]]:
    """The columns that a table must have, with the keys that name them."""
    if data.format == "messages":
        yield "messages_column", data.messages_column
    elif data.format == "text":
        yield "text_column", data.text_column
    else:
        columns = _columns(data)
        yield from (("question_column", columns.question), ("answer_column", columns.answer))
    if not owned:
        return
    for key, value in data:
        if key in _OPTIONAL and value is not None:
            yield key, value


_OPTIONAL = (
    "client_column",
    "subject_column",
    "fact_column",
    "paraphrased_question_column",
    "paraphrased_answer_column",
    "wrong_answers_column",
)


def _check_columns(data: HfData, rows: Sequence[Row], *, owned: bool) -> None:
    """Refuse a table without a column that is read, and say which it has."""
    has = columns_of(rows)
    for key, column in _wanted(data, owned=owned):
        if column not in has:
            raise ConfigError(
                f"{rows[0].path} has no column {column!r}; its columns are {', '.join(has)}: name one of "
                "them, or another format",
                key,
            )


# -------------------------------------------------------------------------------------- records


def _owners(data: HfData, table: Table, seed: int) -> list[str]:
    """Whose each row is."""
    if data.client_column is not None:
        spelt = Speller(column=data.client_column)
        return [spelt.read(row) for _, row in table]
    assert data.clients is not None
    return [str(client) for client in deal(table, data.partition, clients=data.clients, seed=seed)]


def _record(data: HfData, row: Row, called: str, owner: str) -> Record:
    """The record of a row."""
    subject = row.optional_text(data.subject_column) if data.subject_column else None
    if data.format == "text":
        return Record(
            record_id=called,
            subject=subject or called,
            question="",
            answer=row.text(data.text_column),
            plain=True,
        )
    if data.format == "messages":
        turns = turns_of(row, data.messages_column)
        earlier, question, answer = exchange(turns, train_on=data.train_on)
        return Record(
            record_id=called,
            subject=subject or owner,
            question=question,
            answer=answer,
            earlier=earlier,
        )
    columns = _columns(data)
    question = row.text(columns.question)
    more = row.fields.get(data.input_column) if data.format == "alpaca" else None
    if more is not None and not (isinstance(more, str) and is_blank(more)):
        question = f"{question}\n\n{row.text(data.input_column)}"
    return record_of(row, columns, record_id=called, owner=owner, question=question)
