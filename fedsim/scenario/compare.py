"""What a scenario compares: unlearning methods, by name or with parameters.

>>> method_positions(["keep", "npo", {"method": "retrain"}, {"method": "grad_diff", "alpha": 0.5}])
(1, 3)
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema

from fedsim.config import Rule
from fedsim.unlearning.protocol import MethodConfig
from fedsim.unlearning.registry import METHODS, MethodChoice

ALWAYS_THERE = ("keep", "leave", "retrain")
"""Branches of every life; in ``compare`` they may be named and mean nothing."""


def _is_always_there(item: object) -> bool:
    return item in ALWAYS_THERE or item in [{"method": name} for name in ALWAYS_THERE]


def method_positions(compare: object) -> tuple[int, ...]:
    """Where in a written ``compare`` list its methods stand."""
    items = compare if isinstance(compare, (list, tuple)) else ()
    return tuple(index for index, item in enumerate(items) if not _is_always_there(item))


def _methods_by_name(value: object) -> object:
    """Let method names stand for themselves, and pass those that are always there by."""
    if not isinstance(value, (list, tuple)):
        return value
    chosen = [value[index] for index in method_positions(value)]
    return tuple({"method": item} if isinstance(item, str) else item for item in chosen)


def _distinct_branches(methods: tuple[MethodConfig, ...]) -> tuple[MethodConfig, ...]:
    for method in methods:
        if not method.has_branch:
            raise ValueError(
                f"{method.method} is compared in every run and has no branch to label; "
                f"write {method.method}, or leave it out"
            )
    names = [*ALWAYS_THERE, *(method.branch for method in methods)]
    for name in names:
        if re.fullmatch(r"retrain-\d+", name):
            raise ValueError(
                f"{name!r} is what checkpoints of a retrain branch are called; take another label"
            )
        if names.count(name) > 1:
            raise ValueError(f"two branches are named {name!r}; give one of them another label")
    return methods


MethodName = Annotated[
    str, WithJsonSchema({"type": "string", "enum": list(dict.fromkeys([*ALWAYS_THERE, *METHODS]))})
]
MethodItem = Annotated[
    MethodChoice, Rule(f"a name or a mapping with the key method; choices: {', '.join(METHODS)}")
]
MethodList = Annotated[
    tuple[MethodItem, ...],
    BeforeValidator(_methods_by_name, json_schema_input_type=tuple[MethodChoice | MethodName, ...]),
    AfterValidator(_distinct_branches),
    Rule("a list of methods, by name or with parameters"),
]
