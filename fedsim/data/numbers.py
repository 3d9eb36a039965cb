"""Whole numbers as a scenario lists them: one, a range, or a list of these.

>>> parse_numbers("0-2, 7")
(0, 1, 2, 7)
>>> parse_numbers([5, "1-2"])
(5, 1, 2)
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator

MOST_NUMBERS = 100_000


def parse_numbers(value: object) -> tuple[int, ...]:
    """The numbers in the order written.

    Raises:
        ValueError: something is neither a whole number from 0 nor a range of them.
    """
    items = value if isinstance(value, list | tuple) else (value,)
    return tuple(number for item in items for number in _numbers(item))


def _numbers(item: object) -> tuple[int, ...]:
    if type(item) is int and item >= 0:
        return (item,)
    if not isinstance(item, str):
        raise ValueError(f"found {item!r}; must be a whole number from 0, or a range such as 180-199")
    return tuple(number for part in item.split(",") for number in _range(part.strip()))


def _range(part: str) -> range:
    match = re.fullmatch(r"(\d{1,9})(?: ?- ?(\d{1,9}))?", part, flags=re.ASCII)
    if match is None:
        raise ValueError(f"found {part!r}; must be a whole number from 0, or a range such as 180-199")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise ValueError(f"the range {part} is empty; write {last}-{first}")
    if last - first >= MOST_NUMBERS:
        raise ValueError(f"the range {part} has {last - first + 1:,} numbers; at most {MOST_NUMBERS:,}")
    return range(first, last + 1)


Numbers = Annotated[
    tuple[int, ...],
    BeforeValidator(parse_numbers, json_schema_input_type=int | str | list[int | str]),
]
