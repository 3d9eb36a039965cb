"""The figure of relearning says what came back, what was there before, and what the run cannot tell."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from plots import relearning, style
from plots.data import RunData
from tests.plots.conftest import Load
from tests.plots.synthetic import FATES, Fate

GUARD = Fate(0.55, None, 0.0, 0.0, "Keyword filter", kind="suppression")


def drawn(run: RunData) -> Figure:
    figure = relearning.draw(run, "base")
    assert figure is not None
    return figure


def title(run: RunData) -> str:
    return style.title_of(drawn(run))


def fates(**changes: float) -> dict[str, Fate]:
    """The default fates, with what relearning brings back of some."""
    back = {name: dataclasses.replace(FATES[name], regained=regained) for name, regained in changes.items()}
    return dict(FATES) | back


def test_nothing_without_the_audit(load: Load) -> None:
    assert relearning.draw(load(), "base") is None
    assert relearning.draw(load(audited=0.5), "other") is None


def test_where_nothing_comes_back_and_what_was_there_before(load: Load) -> None:
    assert title(load(audited=0.5)) == (
        "Gradient difference knew more than retrain before it; gradient ascent and NPO never exceeded "
        "retrain by 0.05 (worst request; one seed, no interval)"
    )


def test_what_comes_back_is_quoted_over_retrain(load: Load) -> None:
    """0.02 before; retrain gains 0.04 itself in four epochs, NPO 0.04 + 1.1 * 0.2."""
    assert title(load(audited=0.5, fates=fates(npo=0.2))).startswith(
        "Relearning a part brings the rest back beyond retrain in NPO (+0.24); gradient difference knew"
    )


def test_several_seeds_have_a_range(load: Load) -> None:
    """Seeds 1, 2 and 3 regain 1.1, 1.2 and 1.3 times 0.2."""
    run = load(audited=0.5, seeds=(1, 2, 3), fates=fates(npo=0.2))
    assert "NPO (+0.26, +0.24 to +0.28)" in title(run)
    assert title(run).endswith("(worst request; range of 3 seeds)")
    assert len(drawn(run).axes[0].collections) == len(FATES)
    assert not drawn(load(audited=0.5)).axes[0].collections


def test_what_comes_back_in_retrain_as_well_is_no_finding(load: Load) -> None:
    """The negative control: all regain the same."""
    everywhere = fates(npo=0.2, retrain=0.2, grad_ascent=0.2, grad_diff=0.2)
    assert "brings the rest back" not in title(load(audited=0.5, fates=everywhere))


def test_what_retrain_alone_loses_has_not_come_back(load: Load) -> None:
    """NPO's excess grows from 0.02 to 0.13 while it falls; gradient ascent rises by no more than 0.05."""
    text = title(load(audited=0.5, fates=fates(npo=-0.1, retrain=-0.2)))
    assert "brings the rest back" not in text
    assert "gradient ascent and NPO kept more than retrain" in text


def test_a_training_that_taught_nothing_tells_nothing(load: Load) -> None:
    assert title(load(audited=0.5, taught=0.0)).startswith("Relearning taught retrain next to nothing")


@pytest.mark.parametrize("change", [{"informative": False}, {"trusted": False}])
def test_what_may_not_be_quoted_is_grey(load: Load, change: dict[str, bool]) -> None:
    run = load(audited=0.5, **change)
    assert "NPO (" not in title(run)
    colours = {to_hex(line.get_color()) for line in drawn(run).axes[0].lines}
    assert run.looks["npo"].colour not in colours


def test_a_panel_a_request_with_its_records_and_a_line_a_view(load: Load) -> None:
    run = load(audited=0.5, fates=dict(FATES) | {"keyword_filter": GUARD})
    axes = drawn(run).axes
    assert [one.get_title(loc="left") for one in axes] == [
        "Request 1, client 3: 9 held back",
        "The 8 relearned",
        "Request 2, client 11: 9 held back",
        "The 8 relearned",
    ]
    shown = [text.get_text() for text in axes[0].texts]
    assert len(shown) == len(FATES) + 2
    assert any(text.endswith("Keyword filter, bare") for text in shown)
    assert any(text.endswith("Keyword filter, guarded") for text in shown)


def test_a_branch_that_diverged_is_left_out(load: Load) -> None:
    run = load(audited=0.5)
    lost = [
        row | ({"value": None, "n": 0} if row["branch"] == "npo" else {}) for row in run.audits["relearning"]
    ]
    figure = drawn(dataclasses.replace(run, audits={"relearning": lost}))
    assert "NPO" not in style.title_of(figure)
    colours = {to_hex(line.get_color()) for line in figure.axes[0].lines}
    assert run.looks["npo"].colour not in colours


def test_curves_by_hand() -> None:
    """Two seeds; the excess is over retrain of the same seed."""
    values = {("npo", "bare", "held back"): np.array([[0.1, 0.5], [0.2, np.nan]])}
    values["retrain", "bare", "held back"] = np.array([[0.1, 0.2], [0.0, 0.1]])
    curves = relearning.Curves(request=None, seeds=(1, 2), epochs=(0, 4), values=values, n={})  # type: ignore[arg-type]
    np.testing.assert_allclose(curves.excess("npo"), [[0.0, 0.3], [0.2, np.nan]])
    assert np.isnan(curves.excess("other")).all()
