"""The model of most tests here, and an adapter from which its clients start."""

from pathlib import Path

import pytest

from fedsim.model.adapter import AdapterModel
from fedsim.model.vectors import Arrays
from tests.world import make_model, random_arrays


@pytest.fixture(scope="module")
def model(llama_base: Path) -> AdapterModel:
    return make_model(llama_base)


@pytest.fixture(scope="module")
def start(model: AdapterModel) -> Arrays:
    return random_arrays(model, 11)
