"""JSON lines, read with distrust: whatever is not what was meant is said with file, line and rule.

A line is one JSON object in UTF-8. Refused are other encodings, a key that is written twice, half
characters, and nesting that no column has; a byte order mark is read over.

>>> import tempfile
>>> from pathlib import Path
>>> path = Path(tempfile.mkdtemp()) / "mine.jsonl"
>>> _ = path.write_text('{"question": "Capital of France?", "answer": "Paris"}')
>>> [row.text("answer") for row in read_rows(path)]
['Paris']
"""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INVISIBLE = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})
"""Unicode categories of characters that leave no mark: controls, formats, separators."""

_SHOWN = 60
_BYTE_ORDER_MARKS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One JSON object and where it stands, for errors that can name the place.

    Without ``by_line``, as in tables and arrays, ``line`` counts rows.
    """

    path: Path
    line: int
    fields: Mapping[str, Any]
    by_line: bool = True

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line}" if self.by_line else f"{self.path}: row {self.line}"

    def text(self, column: str) -> str:
        """The string in ``column``, which has at least one visible character."""
        if column not in self.fields:
            nearest = difflib.get_close_matches(column, self.fields, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            has = f"; its columns are {', '.join(map(str, self.fields))}" if self.fields else ""
            raise ValueError(f"{self.where}: column {column!r} is missing in this row{has}{hint}")
        return self._visible(column, self.fields[column])

    def optional_text(self, column: str) -> str | None:
        """The same, or None where the column is absent or null."""
        return None if self.fields.get(column) is None else self.text(column)

    def listed(self, column: str) -> object:
        """What stands in ``column``; a list or object where a text, as of a CSV cell, is JSON of one."""
        value = self.fields.get(column)
        if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
            return value
        try:
            return parsed(self.where, value)
        except json.JSONDecodeError:
            return value

    def texts(self, column: str) -> tuple[str, ...]:
        """The list of strings in ``column``, each with something to see; empty where it is absent."""
        value = self.listed(column)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ValueError(f"{self.where}: {column}={shown(value)} must be a list of strings")
        return tuple(self._visible(f"{column}[{place}]", item) for place, item in enumerate(value))

    def only(self, known: Collection[str]) -> None:
        """Refuse columns other than the ``known`` ones."""
        for column in self.fields:
            if column not in known:
                near = difflib.get_close_matches(column, known, n=1, cutoff=0.0)
                raise ValueError(
                    f"{self.where}: column {shown(column)} is unknown and would be passed over; known are "
                    f"{', '.join(known)}; nearest: {near[0]!r}, or name it in data.ignore_columns"
                )

    def _visible(self, what: str, value: object) -> str:
        if not isinstance(value, str) or is_blank(value):
            quoted = "put it in quotes" if self.by_line else "make the column one of texts"
            instead = "write it" if value is None or isinstance(value, str) else quoted
            raise ValueError(
                f"{self.where}: {what}={shown(value)} must be a non-empty string, not blanks alone; "
                f"{instead}, or leave the {'line' if self.by_line else 'row'} out"
            )
        return value


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: empty, or spaces, controls and zero-width characters alone."""
    return all(unicodedata.category(character) in INVISIBLE for character in text)


def shown(value: object) -> str:
    """A value as errors quote it: Python's literal, cut when it is long."""
    try:
        text = repr(value)
    except RecursionError:
        return f"(a deeply nested {type(value).__name__})"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def read_rows(path: Path) -> Iterator[Row]:
    """The JSON objects of a file, one a line; blank lines are skipped, lines count from 1.

    Raises:
        ValueError: the file cannot be read as UTF-8, or a line is no JSON object with each key once and
            whole characters alone; says which line.
    """
    for number, line in lines_of(path):
        if line.strip():
            yield Row(path=path, line=number, fields=as_object(f"{path}:{number}", line))


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file in UTF-8 with their numbers from 1, without byte order marks.

    Raises:
        ValueError: the file cannot be read as UTF-8; says which line.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; {_siblings(path)}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); name a file of records") from None
    refuse_wide(path, content)
    for number, raw in enumerate(re.split(rb"\r\n|\r|\n", content), start=1):
        try:
            yield number, raw.decode("utf-8").removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            raise ValueError(not_utf8(f"{path}:{number}", path, content, raw, error.start)) from None


def _siblings(path: Path) -> str:
    if path.is_dir():
        return "it is a folder; name a file in it"
    if not path.parent.is_dir():
        return f"there is no folder {path.parent} either"
    names = [entry.name for entry in path.parent.iterdir() if entry.is_file()]
    nearest = difflib.get_close_matches(path.name, names, n=1)
    if nearest:
        return f"nearest in that folder: {nearest[0]!r}"
    return f"folder {path.parent} has {'none of a like name' if names else 'no files'}"


# ------------------------------------------------------------------------------------ encodings


def refuse_wide(path: Path, content: bytes) -> None:
    """Refuse encodings of two or four bytes a character, by their mark or by where zero bytes stand."""
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), None)
    if encoding is None:
        head = content[:200]
        if head.count(0) * 2 > len(head):
            encoding = "UTF-32"
        elif head.count(0) * 4 > len(head):
            encoding = "UTF-16BE" if head[:1] == b"\0" else "UTF-16LE"
    if encoding is not None:
        raise ValueError(
            f"{path}:1: the file is in {encoding} and must be in UTF-8; {_convert(encoding, path)}"
        )


_RARE = frozenset({*range(0x81, 0x85), *range(0x86, 0x91), 0x98, 0x9B, *range(0x9D, 0xA0)})
"""Bytes that text in Windows-1252 hardly has, and text in Shift-JIS, GBK or Big5 often."""


def not_utf8(where: str, path: Path, content: bytes, raw: bytes, start: int) -> str:
    """What is wrong with a line (``raw``) of a file that is not UTF-8 from ``start`` on, and a way out."""
    byte = f"byte 0x{raw[start]:02x} at column {start + 1} is not UTF-8"
    high = [value for value in content if value >= 0x80]
    whole = re.findall(
        rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}", content
    )
    if 2 * sum(map(len, whole)) >= len(high):
        return (
            f"{where}: {byte}, which the rest of the file is; the character was cut or damaged: mend the line"
        )
    if 4 * sum(value in _RARE for value in high) > len(high):
        return f"{where}: {byte}; the file must be in UTF-8: convert it from the encoding that it is in"
    encoding = "Windows-1252" if any(value < 0xA0 for value in high) else "Latin-1"
    near = raw[max(0, start - 12) : start + 12].decode(
        "cp1252" if encoding == "Windows-1252" else "latin-1", errors="replace"
    )
    return (
        f"{where}: {byte}; the file looks like {encoding} (then it says {near!r} here) and must be in UTF-8; "
        f"{_convert(encoding, path)}"
    )


def _convert(encoding: str, path: Path) -> str:
    name = {"Latin-1": "ISO-8859-1", "Windows-1252": "CP1252"}.get(encoding, encoding)
    return f"convert it: iconv -f {name} -t UTF-8 {path.name} > utf8-{path.name}"


# ---------------------------------------------------------------------------------------- JSON


class _TwiceError(Exception):
    """A key stands twice in one object."""


def as_object(where: str, line: str) -> dict[str, Any]:
    """The JSON object that a text is; ValueError with ``where`` if it is none."""
    try:
        fields = parsed(where, line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where}: not JSON ({error.msg} at column {error.colno}); each line must be one JSON object"
        ) from None
    if not isinstance(fields, dict):
        raise ValueError(f"{where}: {shown(line.strip())} must be a JSON object")
    if "\\u" in line:
        check_characters(where, fields)
    return fields


def parsed(where: str, text: str) -> Any:
    """What a text in JSON says, with each key once in an object.

    Raises:
        json.JSONDecodeError: the text is no JSON.
        ValueError: it is JSON that says what no record says; begins with ``where``.
    """
    try:
        return json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError:
        raise
    except _TwiceError as error:
        raise ValueError(
            f"{where}: key {shown(error.args[0])} stands twice in one object; each key once, "
            "and one record a line"
        ) from None
    except RecursionError:
        raise ValueError(
            f"{where}: nested too deeply; a value is a string, a number or a list of strings"
        ) from None
    except ValueError as error:
        raise ValueError(f"{where}: a number cannot be read ({error}); write it as a string") from None


def check_characters(where: str, fields: Mapping[str, Any]) -> None:
    """Refuse columns that hold half a character, in themselves or in their lists."""
    for column, value in fields.items():
        _whole_characters(where, column, column)
        for text in value if isinstance(value, list) else [value]:
            _whole_characters(where, column, text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _TwiceError(key)
        found[key] = value
    return found


def _whole_characters(where: str, column: str, text: object) -> None:
    """Refuse a lone surrogate, which is half a character and has no UTF-8."""
    half = re.search("[\ud800-\udfff]", text) if isinstance(text, str) else None
    if half is not None:
        raise ValueError(
            f"{where}: column {shown(column)} holds half a character, \\u{ord(half[0]):04x} at position "
            f"{half.start() + 1}: the text was cut within an emoji or its like; cut it at a whole character"
        )
