"""The examples in the module docstrings run and give what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

from fedsim import metrics

FAMILIES = sorted(path.stem for path in Path(metrics.__file__).parent.glob("[a-z]*.py"))


@pytest.mark.parametrize("family", FAMILIES)
def test_example(family: str) -> None:
    outcome = doctest.testmod(importlib.import_module(f"fedsim.metrics.{family}"))
    assert outcome.attempted > 0
    assert outcome.failed == 0
