"""FedOSD: by hand on two and three parameters, against least squares, and in a life."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import lsq_linear

from fedsim.model.forward import Pass
from fedsim.places import ScenarioError
from fedsim.storage.directory import RunDirectory
from fedsim.unlearning.desk import Desk, Sent
from fedsim.unlearning.methods.fed_osd import FedOsd, HalvedCrossEntropy, across
from fedsim.unlearning.request import Request
from tests.e2e.runs import LIFE, adapter, differences, finish, merged, run

REQUEST = Request(number=1, client=1, round=2, scope="client", record_ids=("a",))


def sent(*values: float) -> Sent:
    return Sent(update={"a": np.float32(values)}, weight=1.0)


def desk(adapter: list[float], reference: list[float]) -> Desk:
    return Desk(adapter={"a": np.float32(adapter)}, kept={"reference": {"a": np.float32(reference)}})


def moved(index: int, updates: dict[int, Sent], at: Desk) -> list[float]:
    return FedOsd(rounds=1, recovery=1).combined(REQUEST, index, updates, at)["a"].tolist()


def test_unlearning_goes_across_the_others_as_far_as_before() -> None:
    """(3, 4) without its part along (0, 2) is (3, 0), stretched to length 5."""
    here = desk([0, 0], [0, 0])
    assert moved(0, {1: sent(3, 4), 0: sent(0, 2)}, here) == pytest.approx([5, 0])
    assert moved(0, {1: sent(3, 4)}, here) == pytest.approx([3, 4])
    assert moved(0, {1: sent(3, 4), 0: sent(6, 8)}, here) == [0, 0]
    assert moved(0, {0: sent(6, 8)}, here) == [0, 0]


def test_recovery_does_not_go_back() -> None:
    """The way gone is (1, 0); of (-3, 4) its part across is (0, 4), stretched to 5; the other is across."""
    there = desk([1, 0], [0, 0])
    assert moved(1, {0: sent(-3, 4), 2: sent(0, 1)}, there) == pytest.approx([0, 3])
    assert moved(1, {}, there) == [0, 0]
    assert moved(1, {0: sent(-3, 4)}, desk([0, 0], [0, 0])) == pytest.approx([-3, 4])


@given(st.integers(0, 10_000), st.integers(1, 4))
def test_it_is_the_nearest_direction_across_all(seed: int, count: int) -> None:
    """Against least squares: what the others cannot explain of the update."""
    drawn = np.random.default_rng(seed)
    update, others = drawn.normal(size=6), drawn.normal(size=(count, 6))
    others[-1] *= 1e-3
    explained = others.T @ lsq_linear(others.T, update).x
    left = update - explained
    expected = left * np.linalg.norm(update) / np.linalg.norm(left)
    assert across(update, list(others)) == pytest.approx(expected, abs=1e-5)
    assert across(update, list(others[::-1])) == pytest.approx(expected, abs=1e-5)


def one_token(probability: float) -> Pass:
    rest = (1 - probability) / 2
    logits = torch.tensor([probability, rest, rest], dtype=torch.float64).log()[None, None].repeat(1, 2, 1)
    return Pass.of(logits.requires_grad_(), torch.tensor([[-100, 0]]))


@pytest.mark.parametrize("probability", [0.01, 0.5, 0.99])
def test_its_loss_by_hand(probability: float) -> None:
    """-log(1 - p/2); its slope in the true token's logit is p (1 - p) / (2 - p)."""
    current = one_token(probability)
    loss = HalvedCrossEntropy()(current, None)
    assert loss.tolist() == pytest.approx([-math.log(1 - probability / 2)])
    (slope,) = torch.autograd.grad(loss.sum(), current.logits_NV)
    assert slope[0, 0].item() == pytest.approx(probability * (1 - probability) / (2 - probability))


SCENARIO = merged(
    LIFE, compare=[{"method": "fed_osd", "rounds": 1, "recovery": 1}, {"method": "npo", "rounds": 1}]
)


class Killed(BaseException):
    """The process ends."""


def test_in_a_life_it_moves_and_goes_on_after_a_kill(tmp_path: Path, monkeypatch) -> None:
    """Killed in the first round of recovery, with what it needs of the round before in a checkpoint."""
    whole = run(tmp_path / "whole", SCENARIO)
    assert adapter(whole, 7, "fed_osd") != adapter(whole, 7, "keep")
    real = FedOsd.combined

    def dies(self, request, index, updates, desk):
        if index == 1:
            raise Killed
        return real(self, request, index, updates, desk)

    monkeypatch.setattr(FedOsd, "combined", dies)
    with pytest.raises(Killed):
        run(tmp_path / "killed", SCENARIO)
    monkeypatch.undo()
    directory = RunDirectory(tmp_path / "killed" / "run")
    finish(directory)
    assert differences(whole, directory) == []


def test_it_needs_updates_one_by_one(tmp_path: Path) -> None:
    stages = [{"stage": "clip", "norm": 1.0}, {"stage": "secure_aggregation"}]
    masked = merged(SCENARIO, privacy=stages, federation__weighting="uniform")
    with pytest.raises((ScenarioError, ValueError), match=r"'fed_osd' needs .'individual_updates'."):
        run(tmp_path, masked)
