"""Adaptive server optimisers against their papers' formulas, written out anew, and against torch's Adam."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord
from flwr.clientapp import ClientApp
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedsim.federation.grid import InProcessGrid
from fedsim.federation.moving import move
from fedsim.federation.orders import Assignment
from fedsim.federation.records import to_record, untouched_global_random
from fedsim.federation.state import Federation
from fedsim.federation.strategies.protocol import StrategyConfig
from fedsim.federation.strategies.registry import strategy_of

GRID = InProcessGrid(ClientApp())
GRID.roster = (0, 1)
ADAPTIVE = ["fedadagrad", "fedyogi", "fedadam"]


def lived(
    config: StrategyConfig, updates: list[float | None], federation: Federation | None = None
) -> list[float]:
    """The adapter's one number after each round whose mean update is given; None: nobody came."""
    if federation is None:
        federation = Federation(algorithm=config, adapter={"a": np.zeros(1, np.float32)})
    seen = []
    for update in updates:
        federation.round += 1
        with untouched_global_random():
            federation.strategy.configure_train(
                federation.round, to_record(federation.adapter), ConfigRecord(), GRID
            )
        if update is not None:
            moved = {"a": np.float32([update])}
            move(federation, moved, Assignment(orders={}), SimpleNamespace(grid=GRID), {})
        seen.append(float(federation.adapter["a"][0]))
    return seen


def reddi(config: StrategyConfig, updates: list[float]) -> list[float]:
    """Algorithm 2 of Reddi et al., coordinate by coordinate, with v_{-1} = tau^2."""
    x, m, v, seen = 0.0, 0.0, config.tau**2, []
    beta_1 = 0.0 if config.name == "fedadagrad" else config.beta_1
    for delta in updates:
        m = beta_1 * m + (1 - beta_1) * delta
        square = delta * delta
        if config.name == "fedadagrad":
            v = v + square
        elif config.name == "fedyogi":
            sign = (v > square) - (v < square)
            v = v - (1 - config.beta_2) * square * sign
        else:
            v = config.beta_2 * v + (1 - config.beta_2) * square
        x += config.eta * m / (math.sqrt(v) + config.tau)
        seen.append(x)
    return seen


def hinges_on_rounding(config: StrategyConfig, updates: list[float]) -> bool:
    """Whether FedYogi meets v = D^2, up to fp32: there its step jumps from one side to the other."""
    v = config.tau**2
    for square in (delta * delta for delta in updates):
        if abs(v - square) <= 1e-4 * max(v, square):
            return True
        v = v - (1 - config.beta_2) * square * ((v > square) - (v < square))
    return False


def torch_adam(config: StrategyConfig, updates: list[float]) -> list[float]:
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([x], lr=config.eta, betas=(config.beta_1, config.beta_2), eps=config.tau)
    seen = []
    for delta in updates:
        x.grad = torch.tensor([-delta], dtype=torch.float64)
        adam.step()
        seen.append(float(x.detach()))
    return seen


@pytest.mark.parametrize("bias_correction", [True, False])
@pytest.mark.parametrize("delta", [1.0, -1e-4, 30.0])
def test_the_first_step_of_fedadam_is_eta(delta: float, bias_correction: bool) -> None:
    """By hand, tau near 0. Kingma & Ba: m / .1 = D, v / .01 = D^2. Reddi et al.: .1 D / sqrt(.01 D^2)."""
    config = strategy_of("fedadam", eta=1e-2, tau=1e-12, bias_correction=bias_correction)
    assert lived(config, [delta]) == pytest.approx([math.copysign(1e-2, delta)], rel=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fedadagrad", 1 / (math.sqrt(1.5625) + 0.75)),  # v = .5625 + 1
        ("fedyogi", 0.5 / (math.sqrt(0.8125) + 0.75)),  # v = .5625 + .25
        ("fedadam", 0.5 / (math.sqrt(0.671875) + 0.75)),  # v = .75 x .5625 + .25
    ],
)
def test_first_steps_that_start_from_tau_squared_by_hand(name: str, expected: float) -> None:
    """eta 1, tau .75, D 1, beta_1 .5, beta_2 .75."""
    own = {} if name == "fedadagrad" else {"beta_1": 0.5, "beta_2": 0.75}
    correction = {"bias_correction": False} if name == "fedadam" else {}
    config = strategy_of(name, eta=1.0, tau=0.75, **own, **correction)
    assert lived(config, [1.0]) == pytest.approx([expected], rel=1e-6)


rates = st.floats(1e-4, 0.5)
betas = st.just(0.0) | st.floats(1e-6, 0.999)
histories = st.lists(st.floats(-2.0, 2.0, width=32), min_size=1, max_size=8)


def close(found: list[float], expected: list[float], config: StrategyConfig) -> bool:
    """Up to fp32 rounding of the adapter, and of an update read as adapter plus update minus adapter."""
    largest = max(1.0, *(abs(x) for x in expected))
    slack = len(expected) * 2.0**-22 * largest * (1 + config.eta / config.tau)
    return np.allclose(found, expected, rtol=0, atol=slack)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(ADAPTIVE),
    eta=rates,
    beta_1=betas,
    beta_2=betas,
    tau=st.floats(1e-2, 1.0),
    updates=histories,
)
def test_all_three_follow_reddi(
    name: str, eta: float, beta_1: float, beta_2: float, tau: float, updates: list[float]
) -> None:
    own = {} if name == "fedadagrad" else {"beta_1": beta_1, "beta_2": beta_2}
    correction = {"bias_correction": False} if name == "fedadam" else {}
    config = strategy_of(name, eta=eta, tau=tau, **own, **correction)
    assume(name != "fedyogi" or not hinges_on_rounding(config, updates))
    assert close(lived(config, updates), reddi(config, updates), config)


@settings(max_examples=60, deadline=None)
@given(eta=rates, beta_1=betas, beta_2=betas, tau=st.floats(1e-2, 1.0), updates=histories)
def test_fedadam_follows_kingma_and_ba(
    eta: float, beta_1: float, beta_2: float, tau: float, updates: list[float]
) -> None:
    config = strategy_of("fedadam", eta=eta, beta_1=beta_1, beta_2=beta_2, tau=tau)
    assert close(lived(config, updates), torch_adam(config, updates), config)


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(ADAPTIVE), updates=histories, empty=st.lists(st.integers(0, 8), max_size=5))
def test_empty_rounds_advance_nothing(name: str, updates: list[float], empty: list[int]) -> None:
    config = strategy_of(name)
    with_gaps: list[float | None] = list(updates)
    for place in empty:
        with_gaps.insert(min(place, len(with_gaps)), None)
    kept = [x for x, update in zip(lived(config, with_gaps), with_gaps, strict=True) if update is not None]
    assert kept == lived(config, updates)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_fork_and_a_reset_count_rounds_as_they_should(name: str) -> None:
    config, updates = strategy_of(name), [0.5, -0.25, 1.0, 0.125]
    through = lived(config, updates)
    first = Federation(algorithm=config, adapter={"a": np.zeros(1, np.float32)})
    lived(config, updates[:2], first)
    fork = first.fork()
    assert lived(config, updates[2:], fork) == through[2:]
    first.replace({"a": np.zeros(1, np.float32)}, server_state="reset")
    assert lived(config, updates, first) == through
