"""Synthetic runs, written and read once for each plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from plots.data import RunData
from tests.plots.synthetic import Plan, build

Load = Callable[..., RunData]


@pytest.fixture(scope="session", name="load")
def _load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """``load(seeds=(1, 2))`` is the default plan with changes, as RunData; nothing may write into it."""
    runs: dict[str, RunData] = {}

    def load(**changes: object) -> RunData:
        plan = dataclasses.replace(Plan(), **changes)
        key = repr(plan)
        if key not in runs:
            folder: Path = tmp_path_factory.mktemp("run")
            runs[key] = RunData.load(build(folder, plan))
        return runs[key]

    return load
