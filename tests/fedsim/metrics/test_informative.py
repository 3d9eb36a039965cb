"""The verdict on a run: each way it can fall, error rates with controls, trust in metrics."""

import numpy as np
import pytest
from scipy import stats

from fedsim.metrics.informative import discrimination, is_informative, metric_trust

KNOWN = np.full(20, 0.95)


def beta(mean: float, n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).beta(4 * mean, 4 * (1 - mean), n)


def test_a_clean_run_is_informative() -> None:
    found = is_informative(KNOWN, beta(0.1, 20, 0), beta(0.1, 80, 1))
    assert found.verdict == "informative"
    assert found.references.low < found.references.difference < found.references.high <= 0.2
    assert (found.references.n_keep, found.references.n_retrain, found.references.n_holdout) == (20, 20, 80)
    assert "keep knows the facts at 0.95" in found.explanation


def test_nothing_to_forget() -> None:
    found = is_informative(np.full(20, 0.79), beta(0.1, 20, 0), beta(0.1, 80, 1))
    assert found.verdict == "uninformative"
    assert found.explanation == "keep knows the facts at 0.79 only, below 0.8: there was little to forget."
    assert is_informative(np.full(20, 0.79), beta(0.1, 20, 0), beta(0.1, 80, 1), min_keep=0.7).verdict == (
        "informative"
    )


def test_facts_that_leak_into_retrain() -> None:
    found = is_informative(KNOWN, beta(0.6, 20, 0), beta(0.1, 80, 1))
    assert found.verdict == "uninformative"
    assert found.references.p_value < 1e-4
    assert "without the client" in found.explanation


def test_too_few_items_are_inconclusive() -> None:
    found = is_informative(KNOWN, [0.05, 0.6], [0.1, 0.2, 0.05, 0.1])
    assert found.verdict == "inconclusive"
    alone = is_informative(KNOWN, [0.1], [0.1, 0.1])
    assert (alone.verdict, alone.references.high) == ("inconclusive", np.inf)


def test_constant_values_need_no_spread() -> None:
    assert is_informative(KNOWN, [0.1, 0.1], [0.1, 0.1]).verdict == "informative"
    assert is_informative(KNOWN, [1.0] * 8, [0.0] * 8).verdict == "uninformative"


def test_a_leak_at_the_margin_is_rarely_called_informative() -> None:
    def rate(leak: float) -> float:
        verdicts = [
            is_informative(KNOWN, beta(0.1 + leak, 16, 2 * k), beta(0.1, 64, 2 * k + 1)).verdict
            for k in range(200)
        ]
        return np.mean([verdict == "informative" for verdict in verdicts])

    assert rate(0.2) < 0.10  # alpha is 0.05 at the margin; binomial error about 0.015
    assert rate(0.0) > 0.90  # the control: without a leak the test has power


@pytest.mark.parametrize("wrong", [{"min_keep": 0.0}, {"alpha": 0.5}, {"margin": 1.0}])
def test_thresholds_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be in"):
        is_informative(KNOWN, KNOWN, KNOWN, **wrong)


def test_discrimination_by_hand_and_by_direction() -> None:
    assert discrimination([0.9, 0.4], [0.5, 0.1]).auc == 0.75
    assert not discrimination([0.9, 0.4], [0.5, 0.1]).trusted
    assert discrimination([0.1, 0.2], [3.0, 4.0], known_is_higher=False).trusted
    assert discrimination([0.1, 0.2], [3.0, 4.0]).auc == 0.0


def test_metric_trust_looks_at_what_both_branches_have() -> None:
    empty = np.full(2, np.nan)
    keep = {"p": np.array([0.9, 0.8]), "nll": np.array([0.1, 0.2]), "r": empty, "only": np.ones(2)}
    retrain = {"p": np.array([0.9, 0.8]), "nll": np.array([2.0, 3.0]), "r": np.ones(2)}
    found = metric_trust(keep, retrain, known_is_lower={"nll"})
    assert {name: trust.trusted for name, trust in found.items()} == {"p": False, "nll": True}
    assert found["p"].auc == 0.5


def test_what_everybody_knows_is_not_informative() -> None:
    """Holdout records that others train on: keep, retrain and holdout all know everything."""
    found = is_informative([1.0] * 9, [1.0] * 9, [1.0] * 9, [0.1] * 9)
    assert (found.verdict, found.reason) == ("uninformative", "holdout_known")
    without = is_informative([1.0] * 9, [1.0] * 9, [1.0] * 9)
    assert (without.verdict, without.reason) == ("uninformative", "nothing_gained")


def test_what_keep_gains_must_be_shown() -> None:
    spread = [0.1, 0.9, 0.2, 1.0, 0.0, 0.8]
    found = is_informative([0.9] * 6, spread, [0.5, 0.5])
    assert found.reason == "too_few_items"
    assert found.references.gained == pytest.approx(0.4)
    assert found.references.gained_low < 0.2
    many = is_informative([0.9] * 120, spread * 20, spread * 20)
    assert many.verdict == "informative"


def test_the_items_that_would_do_do() -> None:
    """With as many items as are needed, of the same spread, the bound holds; with one fewer it does not."""
    draws = np.random.default_rng(3)
    retrain, holdout = draws.uniform(0.0, 0.4, 6), draws.uniform(0.0, 0.4, 60)
    found = is_informative([0.95] * 6, retrain, holdout)
    assert found.references.items_needed is not None

    def bound(n: int) -> float:
        spread = retrain.std(ddof=1)
        shaped = stats.zscore(draws.normal(size=n), ddof=1) * spread + retrain.mean()
        return is_informative([0.95] * n, shaped, holdout).references.high

    assert bound(found.references.items_needed) <= 0.2 + 1e-9
    assert found.references.items_needed == 2 or bound(found.references.items_needed - 1) > 0.2
    assert is_informative([0.95] * 6, retrain + 0.5, holdout).references.items_needed is None
