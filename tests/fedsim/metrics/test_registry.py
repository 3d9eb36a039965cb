"""The registry of metrics: what follows from it, and that figures call metrics by its titles."""

from fedsim.app.catalogue import catalogue
from fedsim.measuring.config import ProbesConfig
from fedsim.metrics.registry import DEFAULT_HEADLINE, HEADLINES, KNOWN_IS_LOWER, METRICS, TRACKED
from plots import words


def test_lists_follow_from_it() -> None:
    assert frozenset({"nll", "truth_ratio"}) == KNOWN_IS_LOWER
    assert TRACKED[0] == DEFAULT_HEADLINE == ProbesConfig().headline
    assert set(HEADLINES) <= set(TRACKED) <= set(METRICS)
    assert [name for name, _ in catalogue()["Metrics"]] == list(METRICS)


def test_every_metric_says_what_it_is() -> None:
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.title
        assert metric.summary
        assert metric.unit


def test_figures_use_its_titles_and_units() -> None:
    assert {name: metric.title for name, metric in METRICS.items()} == words.METRICS
    for name, metric in METRICS.items():
        assert words.UNITS.get(name, "0 to 1") == metric.unit
