"""What clients are called: by their data's names, everywhere a person reads or writes them.

Inside, a client is an integer. Where all names of the data are numbers (0, 1, 2, ... without leading
zeros, below a million), the number is the id. Otherwise ids are given in order of first appearance, from 0,
and shown. A scenario may write either, but a number counts by place only where no name is a number.

>>> names = ClientNames.of(["clinic-b", "clinic-a"])
>>> dict(names.by_id), names.text(1)
({0: 'clinic-b', 1: 'clinic-a'}, 'client clinic-a')
>>> dict(ClientNames.of(["7", "2"]).by_id)
{2: '2', 7: '7'}
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from fedsim.data.rows import Row, shown

_LISTED = 4
"""How many clients are named one by one."""

_DIGITS, _COMPARED = 20, 10_000
"""Longest number, and most names, among which a nearest one is sought."""

_ALIKE = str.maketrans(
    "АВСЕНІЈКМОРЅТХҮасеһіјорԛѕѵԝхуΑΒΕΗΙΚΜΝΟΡΤΧΥΖονϳ",
    "ABCEHIJKMOPSTXYacehijopqsvwxyABEHIKMNOPTXYZovj",
)
"""Cyrillic and Greek letters that print as Latin ones (Unicode TS 39 calls them confusable)."""

_TABLE_NAMES = ("holdout", "retain", "model")
"""What the tables of results call something else, besides what begins with ``forget:`` or ``client:``."""

EVERYBODY = "all"
"""Stands for all clients in a scenario, so nobody is called so."""


@dataclass(frozen=True, kw_only=True)
class ClientNames:
    """The names of a corpus's clients, by id; a client that is not listed is called by its number."""

    by_id: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, names: Iterable[str]) -> ClientNames:
        """Number different ``names``: by themselves where all are numbers, else by place."""
        listed = list(names)
        if all(_is_id(name) for name in listed):
            return cls(by_id={number: str(number) for number in sorted(map(int, listed))})
        return cls(by_id=dict(enumerate(listed)))

    @cached_property
    def are_numbers(self) -> bool:
        """Whether each name is the id itself."""
        return all(str(number) == name for number, name in self.by_id.items())

    @cached_property
    def _by_name(self) -> Mapping[str, int]:
        return {name: number for number, name in self.by_id.items()}

    @cached_property
    def _count_by_place(self) -> bool:
        """Whether a number may stand for a client by its place: where no client is called by a number."""
        return not any(name.isdecimal() for name in self.by_id.values())

    def name(self, client: int) -> str:
        return self.by_id.get(client, str(client))

    def text(self, client: int) -> str:
        """``client 3``, ``client clinic-a``."""
        return f"client {self.name(client)}"

    def range_text(self, clients: Iterable[int]) -> str:
        """``client 3``, ``clients 0-5``, ``clients a, b and c``, or how many they are."""
        listed = sorted(clients)
        if len(listed) == 1:
            return self.text(listed[0])
        if self.are_numbers and listed == list(range(listed[0], listed[-1] + 1)):
            return f"clients {listed[0]}-{listed[-1]}"
        if len(listed) > _LISTED:
            return f"{len(listed)} clients"
        called = [self.name(client) for client in listed]
        return f"clients {', '.join(called[:-1])} and {called[-1]}"

    def find(self, written: int | str) -> int:
        """The client of this name; or of this number, where no client is called by a number.

        Raises:
            ValueError: no such client; names the nearest.
        """
        called = str(written) if isinstance(written, int) else tidy(written)
        if called in self._by_name:
            return self._by_name[called]
        if self._count_by_place and _is_id(called) and int(called) in self.by_id:
            return int(called)
        raise ValueError(
            f"client {called} is not in the data, which has {self.range_text(self.by_id)}; "
            f"nearest is {self._nearest(called)}"
        )

    def read(self, written: Iterable[int | str], everybody: Iterable[int]) -> tuple[int, ...]:
        """The clients that names, numbers and ranges stand for.

        Numbers may be ranges (``0-19``); ``all`` stands for ``everybody``; commas may stand between. A name
        as a whole goes before what its parts could mean.

        Raises:
            ValueError: one is not in the data, or a range is none.
        """
        found: list[int] = []
        for item in written:
            if isinstance(item, int) or tidy(item) in self._by_name:
                found.append(self.find(item))
            elif tidy(item) == EVERYBODY:
                found.extend(everybody)
            else:
                for part in item.split(","):
                    found.extend(self._part(tidy(part)))
        return tuple(found)

    def _part(self, part: str) -> Iterator[int]:
        match = None if part in self._by_name else re.fullmatch("([0-9]{1,7}) ?- ?([0-9]{1,7})", part)
        if match is None:
            yield self.find(part)
            return
        low, high = int(match[1]), int(match[2])
        if high < low:
            raise ValueError(f"found {part!r}; the range {part} is empty; write {high}-{low}")
        for number in range(low, high + 1):
            yield self.find(number)

    def _nearest(self, called: str) -> str:
        if called.isdecimal() and len(called) < _DIGITS and (self.are_numbers or self._count_by_place):
            return self.name(min(self.by_id, key=lambda other: abs(other - int(called))))
        some = list(self._by_name)[:_COMPARED]
        return difflib.get_close_matches(called, some, n=1, cutoff=0.0)[0]


def table_name(public: str) -> str:
    """The name of a public set in the tables of results."""
    taken = public in _TABLE_NAMES or public.startswith(("forget:", "client:"))
    return f"public-{public}" if taken else public


def other_than(name: str, taken: Collection[str], prefix: str) -> str:
    """A name with a prefix where it is taken."""
    return f"{prefix}-{name}" if name in taken else name


def tidy(name: str) -> str:
    """A name without its accidents: composed (NFC), no space at its ends, one space at a time within."""
    return " ".join(unicodedata.normalize("NFC", name).split())


class Speller:
    """Reads the client of each row, and refuses a client that is written in two ways."""

    def __init__(self, *, column: str) -> None:
        self._column = column
        self._first: dict[str, tuple[str, int]] = {}

    def read(self, row: Row) -> str:
        """The tidy name of a row's client; a JSON number and its digits are one name.

        Raises:
            ValueError: no name, one that cannot be shown, or another spelling of an earlier one.
        """
        value = row.fields.get(self._column)
        written = str(value) if type(value) is int else row.text(self._column)
        name = tidy(written)
        if any(unicodedata.category(character) == "Cc" for character in name):
            raise ValueError(
                f"{row.where}: {self._column}={shown(written)} holds control characters; drop them"
            )
        if name == EVERYBODY:
            raise ValueError(
                f"{row.where}: {self._column}={name!r} stands for all clients in a scenario; "
                "call this one otherwise, for example 'all-1'"
            )
        key = _key(name)
        first, line = self._first.setdefault(key, (written, row.line))
        if first != written:
            raise ValueError(
                f"{row.where}: {self._column}={written!a} is line {line}'s {first!a} written "
                f"otherwise ({_difference(first, written)}); write one client one way, nearest: {name!r}"
            )
        return name


def _key(name: str) -> str:
    """What two spellings of one client share: how they print, and numbers without leading zeros."""
    visible = "".join(character for character in name if unicodedata.category(character) != "Cf")
    visible = visible.translate(_ALIKE)
    return str(int(visible)) if re.fullmatch("[0-9]{1,4000}", visible) else visible


def _difference(first: str, second: str) -> str:
    if unicodedata.normalize("NFC", first) == unicodedata.normalize("NFC", second):
        return "composed and decomposed letters, NFC and NFD"
    if tidy(first) == tidy(second):
        return "spaces"
    if first.isdigit() and second.isdigit():
        return "leading zeros"
    alike = tidy(first).translate(_ALIKE) == tidy(second).translate(_ALIKE)
    return "letters of two alphabets that print alike" if alike else "invisible characters"


def _is_id(name: str) -> bool:
    return re.fullmatch("0|[1-9][0-9]{0,5}", name) is not None
