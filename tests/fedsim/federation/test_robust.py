"""Robust aggregation: by hand, against a client that lies, and in any order."""

import numpy as np
import pytest
from flwr.clientapp import ClientApp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsim.federation.grid import InProcessGrid
from fedsim.federation.one_by_one import combine
from fedsim.federation.strategies.protocol import StrategyConfig
from fedsim.federation.strategies.registry import STRATEGIES, strategy_of
from privacy import Contribution

MEDIAN = strategy_of("fedmedian")
TRIMMED = strategy_of("fedtrimmedavg", beta=0.2)
KRUM = strategy_of("krum", num_malicious_nodes=1)
MULTIKRUM = strategy_of("multikrum", num_malicious_nodes=1, num_nodes_to_select=2)
BULYAN = strategy_of("bulyan", num_malicious_nodes=1)
ROBUST = [MEDIAN, TRIMMED, KRUM, MULTIKRUM, BULYAN]
BY_NAME = pytest.mark.parametrize("config", ROBUST, ids=lambda config: config.name)


@pytest.fixture(scope="module")
def grid() -> InProcessGrid:
    return InProcessGrid(ClientApp())


def combined(
    config: StrategyConfig, updates: dict[str, list[float]], grid: InProcessGrid, start=0.0, weights=None
) -> np.ndarray:
    """What a strategy adds to an adapter of two arrays whose entries are all ``start``."""
    size = len(next(iter(updates.values())))
    adapter = {"a": np.full(1, start, np.float32), "b": np.full((size - 1, 1), start, np.float32)}
    sent = {
        client: Contribution(update=np.array(update, float), weight=(weights or {}).get(client, 1.0))
        for client, update in updates.items()
    }
    after = combine(config.make(), adapter, sent, grid, 1)
    assert {value.dtype for value in after.values()} == {np.dtype(np.float32)}
    assert {name: value.shape for name, value in after.items()} == {"a": (1,), "b": (size - 1, 1)}
    return np.concatenate([after["a"].ravel(), after["b"].ravel()]).astype(float) - start


# -------------------------------------------------------------------------------- by hand


def test_median_by_hand(grid) -> None:
    """Of each coordinate by itself; of four, the mean of the two in the middle. Weights do not count."""
    updates = {"0": [1.0, 30.0], "1": [2.0, 10.0], "2": [900.0, 20.0]}
    assert combined(MEDIAN, updates, grid, weights={"2": 100.0}).tolist() == [2.0, 20.0]
    assert combined(MEDIAN, updates | {"3": [4.0, 0.0]}, grid).tolist() == [3.0, 15.0]


def test_trimmed_mean_by_hand(grid) -> None:
    """A fifth of five is cut at each end."""
    updates = {"0": [-50.0, 1.0], "1": [1.0, 2.0], "2": [2.0, 3.0], "3": [6.0, 4.0], "4": [7.0, 500.0]}
    assert combined(TRIMMED, updates, grid).tolist() == [3.0, 3.0]


def test_krum_takes_the_one_in_the_middle(grid) -> None:
    """Squared distances to the n - f - 2 = 2 nearest: 5, 2, 5, 41 and much."""
    updates = {"0": [0.0, 0.0], "1": [0.0, 1.0], "2": [0.0, 2.0], "3": [0.0, 6.0], "4": [900.0, 0.0]}
    assert combined(KRUM, updates, grid).tolist() == [0.0, 1.0]


def test_multikrum_is_the_weighted_mean_of_those_in_the_middle(grid) -> None:
    """Squared distances to the two nearest are 10, 5, 10 (9 + 1), 5 (1 + 4) and much."""
    updates = {"0": [0.0, 0.0], "1": [0.0, 1.0], "2": [0.0, 3.0], "3": [0.0, 2.1], "4": [900.0, 0.0]}
    weights = {"1": 1.0, "3": 3.0}
    assert combined(MULTIKRUM, updates, grid, weights=weights) == pytest.approx([0.0, (1 + 3 * 2.1) / 4])


def test_bulyan_by_hand(grid) -> None:
    """Of 0 1 2 3 4 6 1000, Krum's scores leave 0 1 2 3 4; the three nearest to their median are 1 2 3."""
    values = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 1000.0]
    updates = {str(client): [value, -value] for client, value in enumerate(values)}
    assert combined(BULYAN, updates, grid).tolist() == [2.0, -2.0]


def test_krum_sees_small_updates_of_a_large_adapter(grid) -> None:
    """In fp32 the distances of 1e-2 between points of norm 1e4 would drown in rounding."""
    updates = {str(client): [0.0, 2.0**-9 * step] for client, step in enumerate([0, 4, 5, 6, 40])}
    assert combined(KRUM, updates, grid, start=2.0**13).tolist() == [0.0, 5 * 2.0**-9]


# -------------------------------------------------------------------------- clients that lie


@BY_NAME
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), liar=st.integers(0, 6), factor=st.sampled_from([1e3, -1e3, 1e6]))
def test_one_liar_does_not_lead_out_of_the_others_range(config, grid, seed, liar, factor) -> None:
    """Seven clients; the mean, as a control, is led out."""
    draws = np.random.default_rng(seed)
    honest = {str(client): draws.normal(1.0, 0.1, 6).tolist() for client in range(7)}
    lying = honest | {str(liar): (factor * np.array(honest[str(liar)])).tolist()}
    others = np.array([update for client, update in honest.items() if client != str(liar)])
    low, high = others.min(axis=0) - 1e-6, others.max(axis=0) + 1e-6
    after = combined(config, lying, grid)
    assert np.all((low <= after) & (after <= high))
    mean = np.mean(list(lying.values()), axis=0)
    assert np.all((mean < low) | (mean > high))


@BY_NAME
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), order=st.permutations(range(7)))
def test_permuting_clients_changes_nothing(config, grid, seed, order) -> None:
    """Neither the order in which they come nor who sends which update."""
    updates = np.random.default_rng(seed).normal(size=(7, 4)).tolist()
    here = combined(config, {str(client): updates[client] for client in range(7)}, grid)
    arrived = combined(config, {str(client): updates[client] for client in order}, grid)
    renamed = combined(config, {str(client): updates[place] for client, place in enumerate(order)}, grid)
    assert arrived.tobytes() == here.tobytes()
    assert renamed == pytest.approx(here, abs=1e-7)


# ------------------------------------------------------------------------------ how many it takes


@pytest.mark.parametrize(
    ("config", "least"),
    [
        (MEDIAN, 1),
        (TRIMMED, 5),
        (strategy_of("fedtrimmedavg", beta=0.0), 1),
        (strategy_of("fedtrimmedavg", beta=0.49), 3),
        (strategy_of("fedtrimmedavg", beta=1 / 49), 50),  # 49 * (1 / 49) is below 1 in floats
        (KRUM, 5),
        (strategy_of("krum", num_malicious_nodes=0), 3),
        (MULTIKRUM, 5),
        (strategy_of("multikrum", num_malicious_nodes=1, num_nodes_to_select=9), 10),
        (BULYAN, 7),
        (strategy_of("fedadam"), 1),
    ],
)
def test_the_fewest_that_a_strategy_takes(grid, config: StrategyConfig, least: int) -> None:
    assert config.fewest() == least
    assert config.too_few(0) is None
    assert config.too_few(least) is None
    assert least == 1 or f"at least {least} updates" in str(config.too_few(least - 1))
    if config.one_by_one:  # Flower goes on with that many
        assert combined(config, {str(client): [1.0, 2.0] for client in range(least)}, grid).tolist() == [1, 2]


@BY_NAME
def test_the_reason_names_strategy_and_numbers(config: StrategyConfig) -> None:
    reasons = {
        "fedmedian": None,
        "fedtrimmedavg": "fedtrimmedavg with beta=0.2 needs at least 5",
        "krum": "krum with num_malicious_nodes=1 needs at least 5",
        "multikrum": "multikrum with num_malicious_nodes=1, num_nodes_to_select=2 needs at least 5",
        "bulyan": "bulyan with num_malicious_nodes=1 needs at least 7",
    }
    expected = reasons[config.name]
    more = " updates; there are 2"
    assert config.too_few(2) == (None if expected is None else expected + more)


def test_which_strategies_combine_one_by_one() -> None:
    one_by_one = {name for name, cls in STRATEGIES.items() if cls.one_by_one}
    assert one_by_one == {config.name for config in ROBUST}
