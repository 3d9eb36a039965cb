"""Rows of a file in any of the usual formats, by the end of its name: JSON, JSON lines, Parquet, CSV.

A ``.json`` file may hold one array of objects, objects line by line, or one object that maps clients to
arrays, as federated benchmarks do; each row of these gets its client in the column ``client``.
Strings in an array are rows with the one column ``text``. CSV cells are texts, never numbers, and an empty
one is none. Rows are counted from 1, and lines where objects stand line by line.

>>> import tempfile
>>> path = Path(tempfile.mkdtemp()) / "mine.json"
>>> _ = path.write_text('{"ward-a": [{"instruction": "Who leads?", "response": "Dr Adeyemi"}]}')
>>> [dict(row.fields) for row in read_table(path)]
[{'client': 'ward-a', 'instruction': 'Who leads?', 'response': 'Dr Adeyemi'}]
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsim.data.rows import Row, check_characters, lines_of, parsed, read_rows, shown

CLIENT = "client"
"""The column of a row's client in files that map clients to rows."""
SUFFIXES = (".json", ".jsonl", ".parquet", ".csv", ".tsv")
_TURN_KEYS = frozenset({"role", "from"})


def read_table(path: Path) -> list[Row]:
    """All rows of a file.

    Raises:
        ValueError: the file or a row cannot be read; says where.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: ends in {suffix!r}, and must be one of {', '.join(SUFFIXES)}")
    if suffix == ".jsonl":
        rows = list(read_rows(path))
    elif suffix == ".json":
        rows = _json(path)
    elif suffix == ".parquet":
        rows = _parquet(path)
    else:
        rows = _csv(path, "\t" if suffix == ".tsv" else ",")
    if not rows:
        raise ValueError(f"{path}: has no rows; write at least one")
    return rows


def columns_of(rows: Sequence[Row]) -> list[str]:
    """The columns that any row has, in order of first appearance."""
    return list(dict.fromkeys(column for row in rows for column in row.fields))


def _json(path: Path) -> list[Row]:
    text = "\n".join(line for _, line in lines_of(path))
    try:
        whole = parsed(str(path), text)
    except json.JSONDecodeError as error:
        if _is_object(text.lstrip().split("\n", 1)[0]):
            return list(read_rows(path))
        raise ValueError(
            f"{path}:{error.lineno}: not JSON ({error.msg} at column {error.colno}); the file must hold an "
            "array of objects, objects line by line, or an object of arrays"
        ) from None
    rows = [
        Row(path=path, line=number, fields=fields, by_line=False)
        for number, fields in enumerate(_objects(path, whole), 1)
    ]
    if "\\u" in text:
        for row in rows:
            check_characters(row.where, row.fields)
    return rows


def _is_object(line: str) -> bool:
    """Whether a line is one JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _numbered(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Rows of a table, counted from 1."""
    return [Row(path=path, line=number, fields=row, by_line=False) for number, row in enumerate(rows, 1)]


def _objects(path: Path, whole: Any) -> Iterator[Mapping[str, Any]]:
    """The rows of a file that is JSON as a whole."""
    if isinstance(whole, dict) and not _maps_clients(whole):
        yield whole
        return
    if not isinstance(whole, dict | list):
        raise ValueError(f"{path}: {shown(whole)} must be an array of objects, or an object of arrays")
    listed = (
        [({}, whole)] if isinstance(whole, list) else [({CLIENT: who}, some) for who, some in whole.items()]
    )
    number = 0
    for owner, items in listed:
        for item in items:
            number += 1
            if isinstance(item, str):
                item = {"text": item}
            if not isinstance(item, dict):
                raise ValueError(f"{path}: row {number}: {shown(item)} must be an object, one a record")
            yield {**owner, **item}


def _maps_clients(whole: Mapping[str, Any]) -> bool:
    """Whether an object maps clients to their rows, and is no row itself: a row may hold a conversation."""
    return any(whole.values()) and all(
        isinstance(items, list)
        and all(
            isinstance(item, str) or (isinstance(item, dict) and not _TURN_KEYS & item.keys())
            for item in items
        )
        for items in whole.values()
    )


def _parquet(path: Path) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    _exists(path)
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: cannot be read as Parquet ({error})") from None
    return _numbered(path, table.to_pylist())


def _csv(path: Path, delimiter: str) -> list[Row]:
    import pyarrow as pa
    from pyarrow import csv as arrow

    text = "\n".join(line for _, line in lines_of(path))
    header = next(csv.reader(text.splitlines(), delimiter=delimiter), [])
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise ValueError(f"{path}:1: column {twice[0]!r} stands twice in the header; name each once")
    try:
        table = arrow.read_csv(
            pa.BufferReader(text.encode()),
            parse_options=arrow.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=arrow.ConvertOptions(
                column_types=dict.fromkeys(header, pa.string()), null_values=[""], strings_can_be_null=True
            ),
        )
    except pa.ArrowException as error:
        raise ValueError(f"{path}: cannot be read as CSV ({error}); quote texts with commas") from None
    return _numbered(path, table.to_pylist())


def _exists(path: Path) -> None:
    """The error of a text file for one that is not there."""
    if not path.is_file():
        next(lines_of(path))
