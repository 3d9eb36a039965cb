"""Which number type ``auto`` is: decided by times, and named before anything is loaded."""

from pathlib import Path

import pytest
import torch

from fedsim.assembly.build import load_and_check
from fedsim.model import arithmetic
from fedsim.model.config import ModelConfig
from fedsim.model.loading import load_model
from fedsim.scenario.file import dump_scenario, load_scenario
from tests.e2e.runs import write_scenario
from tests.fedsim.assembly.test_estimate import LIFE


def timed(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    monkeypatch.setattr(arithmetic, "seconds", lambda device, dtype: seconds[dtype])


@pytest.mark.parametrize(("bfloat16", "expected"), [(0.5, "bfloat16"), (0.95, "float32"), (9.0, "float32")])
def test_auto_is_bfloat16_where_that_clearly_pays(monkeypatch, bfloat16: float, expected: str) -> None:
    timed(monkeypatch, float32=1.0, bfloat16=bfloat16)
    assert arithmetic.resolved("auto", "cpu") == expected
    assert arithmetic.resolved("float16", "cpu") == "float16"


def test_a_slow_type_is_worth_a_word(monkeypatch) -> None:
    timed(monkeypatch, float32=1.0, bfloat16=9.0, float16=1.2)
    said = arithmetic.slow_sentence("bfloat16", "cpu")
    assert said is not None
    assert "bfloat16 take 9.0 times as long as in float32" in said
    assert said.endswith("model.dtype: auto is float32 here.")
    assert arithmetic.slow_sentence("float16", "cpu") is None
    assert arithmetic.slow_sentence("float32", "cpu") is None


@pytest.mark.parametrize(("bfloat16", "expected"), [(0.5, "bfloat16"), (9.0, "float32")])
def test_what_auto_became_is_written_down(
    monkeypatch, tmp_path: Path, bfloat16: float, expected: str
) -> None:
    timed(monkeypatch, float32=1.0, bfloat16=bfloat16)
    written = write_scenario(tmp_path, {**LIFE, "model": {"dtype": "auto"}})
    simulation = load_and_check(load_scenario(written))
    assert f"dtype: {expected}\n" in dump_scenario(simulation.loaded.scenario)
    (model,) = simulation.replicas(simulation.loaded.variants[0].scenario.model)
    frozen = {p.dtype for p in model.module.parameters() if not p.requires_grad}
    assert frozen == {getattr(torch, expected)}


def test_a_model_that_is_loaded_alone_knows_auto(monkeypatch) -> None:
    timed(monkeypatch, float32=1.0, bfloat16=0.5)
    model = load_model(ModelConfig(dtype="auto"))
    assert torch.bfloat16 in {p.dtype for p in model.module.parameters()}


def test_the_trial_times_real_products() -> None:
    arithmetic.seconds.cache_clear()
    assert arithmetic.seconds("cpu", "float32") > 0
