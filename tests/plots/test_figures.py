"""Figures: every one draws, none without its data, titles follow the data, bytes and colours are stable."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from plots import (
    claims,
    clients,
    epsilon,
    excess,
    figures,
    inversion,
    pareto,
    quality,
    ratios,
    style,
    sweep,
    timeline,
    trust,
)
from plots.data import RunData
from plots.figures import FIGURES, Kind, draw_all
from plots.tables import verdict_rows
from tests.plots.conftest import Load
from tests.plots.synthetic import FATES, Fate


def title(figure: Figure | None) -> str:
    assert figure is not None
    return style.title_of(figure)


def drawn_colours(figure: Figure) -> set[str]:
    return {to_hex(line.get_color()) for axes in figure.axes for line in axes.lines}


@pytest.mark.parametrize("kind", FIGURES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("seeds", [(1,), (1, 2, 3)])
def test_every_figure_draws_and_states_a_finding(load: Load, kind: Kind, seeds: tuple[int, ...]) -> None:
    figure = kind.draw(load(seeds=seeds, epsilon=1.0, audited=0.8), "base")
    assert len(title(figure)) > 20
    assert "removed" not in (title(figure) + kind.caption)


def beyond(figure: Figure) -> float:
    """Inches by which what is drawn reaches beyond the figure."""
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    return max(-drawn.x0, -drawn.y0, drawn.x1 - width, drawn.y1 - height)


@pytest.mark.parametrize("kind", FIGURES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("requests", [1, 2])
@pytest.mark.parametrize("more", [{}, {"clients": 100}, {"informative": False, "seeds": (1, 2, 3)}])
def test_nothing_is_cut_off(load: Load, kind: Kind, requests: int, more: dict[str, object]) -> None:
    run = load(epsilon=1.0, audited=0.8, **more)
    life = run.life | {"requests": run.life["requests"][:requests]}
    figure = kind.draw(dataclasses.replace(run, life=life), "base")
    assert figure is not None
    assert beyond(figure) < 0.01


def test_what_is_cut_off_is_noticed(load: Load) -> None:
    figure = quality.draw(load(), "base")
    assert figure is not None
    figure.text(0.99, 0.5, "beyond the edge")
    assert beyond(figure) > 0.3


class TestMissingData:
    def test_no_epsilon(self, load: Load) -> None:
        assert epsilon.draw(load(), "base") is None

    def test_no_audits(self, load: Load) -> None:
        assert claims.draw(load(), "base") is None
        assert inversion.draw(load(), "base") is None

    def test_nothing_swept(self, load: Load) -> None:
        assert sweep.draw(load()) is None
        assert sweep.draw(load(variants=("a", "b"))) is None

    def test_no_items(self, load: Load) -> None:
        assert ratios.draw(load(items=False), "base") is None

    def test_no_client_metrics(self, load: Load) -> None:
        assert clients.draw(load(client_metrics=False), "base") is None

    def test_no_metrics_at_all(self, load: Load) -> None:
        run = dataclasses.replace(load(), metrics={}, records={}, verdict={"informative": [], "rows": []})
        assert [kind.name for kind in FIGURES if kind.draw(run, "base") is not None] == []

    def test_unknown_variant(self, load: Load) -> None:
        run = load()
        assert timeline.draw(run, "other") is None
        assert trust.draw(run, "other") is None

    def test_a_branch_without_values_is_left_out(self, load: Load) -> None:
        run = load()
        kept = {key: value for key, value in run.metrics.items() if key[1] != "npo"}
        figure = timeline.draw(dataclasses.replace(run, metrics=kept), "base")
        assert figure is not None
        assert run.looks["npo"].colour not in drawn_colours(figure)


class TestTitlesSayWhatTheDataSay:
    """Each with the data flipped as the negative control."""

    def flipped(self) -> dict[str, Fate]:
        npo, ascent = FATES["npo"], FATES["grad_ascent"]
        swapped = {
            "npo": dataclasses.replace(npo, excess=-0.11, time=None, damage=0.25),
            "grad_ascent": dataclasses.replace(ascent, excess=0.0, time=6, damage=0.0),
        }
        return dict(FATES) | swapped

    def test_timeline(self, load: Load) -> None:
        before, after = (
            title(timeline.draw(load(), "base")),
            title(timeline.draw(load(fates=self.flipped()), "base")),
        )
        assert before == (
            "Gradient ascent over-forgets: it knows less than the retrained model; Gradient difference still "
            "knows more than the retrained model; NPO is within the margins of the retrained model"
        )
        assert "NPO over-forgets" in after
        assert "Gradient ascent is within the margins" in after

    def test_nobody_reaches_it(self, load: Load) -> None:
        fates = dict(FATES) | {"npo": dataclasses.replace(FATES["npo"], excess=0.3, time=None)}
        text = title(timeline.draw(load(fates=fates), "base"))
        assert "within the margins" not in text
        assert "Gradient difference and NPO still know more than the retrained model" in text

    @pytest.mark.parametrize(
        ("draw", "near", "far"),
        [
            (excess.draw, "NPO within ±0.05", "NPO +0.4"),
            (quality.draw, "does not tell NPO", "tells gradient ascent, gradient difference and NPO"),
            (ratios.draw, "and NPO 0.06", "and NPO 1.00"),
            (pareto.draw, "NPO is within the margins of", "Every method with a cost differs"),
        ],
    )
    def test_npo_is_near_only_while_it_is(
        self, load: Load, draw: Callable[[RunData, str], Figure | None], near: str, far: str
    ) -> None:
        fates = dict(FATES) | {"npo": dataclasses.replace(FATES["npo"], excess=0.4, time=None)}
        before, after = title(draw(load(), "base")), title(draw(load(fates=fates), "base"))
        assert near in before
        assert near not in after
        assert far in after

    def test_no_p_of_few_records_is_judged(self, load: Load) -> None:
        few, enough = load(records=19), load(records=20)
        assert title(quality.draw(few, "base")) == (
            "Too few records (19 a request) for a p of the KS test to be quoted"
        )
        assert "does not tell NPO" in title(quality.draw(enough, "base"))
        shown = [
            [
                cell
                for row in verdict_rows(run, "base", run.requests[0])
                for cell in row.cells
                if "n " in cell.note
            ]
            for run in (few, enough)
        ]
        assert [any("p " in cell.note for cell in cells) for cells in shown] == [False, True]

    def test_clients(self, load: Load) -> None:
        gentle = {name: dataclasses.replace(fate, damage=0.0) for name, fate in FATES.items()}
        assert "Gradient ascent hurts client" in title(clients.draw(load(), "base"))
        assert title(clients.draw(load(fates=gentle), "base")).startswith("No method costs any remaining")

    def test_trust(self, load: Load) -> None:
        assert title(trust.draw(load(), "base")) == "3 of 4 metrics tell keep from retrain on this run"
        assert "headline metric, fact probability, does not" in title(trust.draw(load(trusted=False), "base"))

    def test_a_claim_that_stands_and_one_that_falls(self, load: Load) -> None:
        assert title(claims.draw(load(audited=0.8), "base")).startswith("No claim was broken (example_dp)")
        assert "example_dp is broken" in title(claims.draw(load(audited=1.4), "base"))

    def test_where_text_is_read(self, load: Load) -> None:
        told = title(inversion.draw(load(audited=0.8), "base"))
        assert told == "The server reads up to 90 % of a record under this run, and nothing under example DP"

    def test_what_a_sweep_leaves_to_forget(self, load: Load) -> None:
        run = load(variants=("loose", "strict"), swept=(100.0, 1.0), audited=0.5, epsilon=1.0)
        assert sweep.values(run) == ("privacy.0.target_epsilon", [("strict", 1.0), ("loose", 100.0)])
        assert title(sweep.draw(run)).startswith("What there is to forget grows from 0.8")

    def test_vacuous_epsilon(self, load: Load) -> None:
        assert "no guarantee" not in title(epsilon.draw(load(epsilon=1.0), "base"))
        assert "no guarantee" not in title(epsilon.draw(load(epsilon=20.0), "base"))
        assert "meaningless" in title(epsilon.draw(load(epsilon=200.0), "base"))

    @pytest.mark.parametrize("module", [timeline, excess, quality, ratios, pareto, clients])
    def test_not_informative_is_said_and_greyed(self, load: Load, module: object) -> None:
        run = load(informative=False)
        figure = module.draw(run, "base")  # type: ignore[attr-defined]
        assert title(figure).startswith("Not informative")

    def test_untrusted_headline_is_not_quoted(self, load: Load) -> None:
        run = load(trusted=False)
        figure = timeline.draw(run, "base")
        assert "not to be quoted" in title(figure)
        assert figure is not None
        assert run.looks["npo"].colour not in drawn_colours(figure)


class TestLooks:
    def test_one_colour_per_method_in_every_figure(self, load: Load) -> None:
        run = load(epsilon=1.0, audited=0.5)
        for kind in FIGURES:
            figure = kind.draw(run, "base")
            assert figure is not None
            if kind.name in ("timeline", "excess", "quality-utility", "truth-ratios", "epsilon", "cost"):
                assert style.FIXED["npo"].colour in drawn_colours(figure), kind.name

    def test_fixed_methods_do_not_depend_on_company(self) -> None:
        alone = style.looks([("npo", "npo")])
        crowd = style.looks([(name, name) for name in ("zeta", "keep", "alpha", "npo", "retrain")])
        assert crowd["npo"] == alone["npo"]

    def test_unknown_methods_do_not_depend_on_order(self) -> None:
        names = ["sisa", "fedosd", "idk", "task_arithmetic", "s3t", "rmu"]
        one = style.looks([(n, n) for n in names])
        other = style.looks([(n, n) for n in reversed(names)])
        assert one == other
        assert len({(look.colour, look.marker) for look in one.values()}) == len(names)

    def test_second_branch_of_a_method_differs(self) -> None:
        found = style.looks([("npo", "npo"), ("npo-b1", "npo")])
        assert found["npo"] == style.FIXED["npo"]
        assert found["npo-b1"].colour != found["npo"].colour
        assert found["npo-b1"].dash != found["npo"].dash


class TestFiles:
    def test_bytes_are_the_same_twice(self, tmp_path: Path, load: Load) -> None:
        run = load(epsilon=1.0, audited=0.5)
        first, again = draw_all(run, tmp_path / "x"), draw_all(run, tmp_path / "y")
        assert len(first) == len(FIGURES)
        for one, two in zip(first, again, strict=True):
            assert one.svg.read_bytes() == two.svg.read_bytes()
            assert one.png.read_bytes() == two.png.read_bytes()
        assert not list((tmp_path / "x").glob(".*"))

    def test_users_settings_neither_matter_nor_change(self, load: Load) -> None:
        run = load()
        with matplotlib.rc_context({"lines.linewidth": 9.0, "axes.facecolor": "red"}):
            before = dict(matplotlib.rcParams)
            figure = trust.draw(run, "base")
            assert dict(matplotlib.rcParams) == before
        assert figure is not None
        assert to_hex(figure.axes[0].get_facecolor()) == "#ffffff"

    def test_variants_have_files_of_their_own(self, tmp_path: Path, load: Load) -> None:
        run = load(variants=("a", "b/c"))
        names = [figures.file_name(run, "cost", v) for v in run.variants]
        assert names == ["cost-00-a", "cost-01-b_c"]


class TestManyAndFew:
    def test_ten_methods_with_long_names(self, load: Load) -> None:
        extra = {
            f"m{i}": Fate(0.05 * i, i, 0.02 * i, 0.01 * (i + 1), f"A long method {i} " * 4) for i in range(8)
        }
        run = load(fates={**FATES, **extra}, epsilon=1.0, seeds=(1, 2), audited=0.5)
        for kind in FIGURES:
            assert len(title(kind.draw(run, "base"))) < 260

    def test_references_only(self, load: Load) -> None:
        run = load(fates={name: FATES[name] for name in ("keep", "leave", "retrain")})
        assert title(timeline.draw(run, "base")) == ("Leave still knows more than the retrained model")

    def test_hundred_clients(self, load: Load) -> None:
        figure = clients.draw(load(clients=100), "base")
        assert figure is not None
        labels = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
        assert {"3", "11"} <= set(labels)
        assert len(labels) < 35

    def test_seed_band_is_drawn_for_several_seeds_only(self, load: Load) -> None:
        def bands(run: RunData) -> int:
            figure = timeline.draw(run, "base")
            assert figure is not None
            return len(figure.axes[1].collections)

        assert bands(load()) == 0
        run = load(seeds=(1, 2))
        assert bands(run) == len(run.requests)  # each request makes another life the reference


def test_distance_by_hand() -> None:
    a, b = np.array([1.0, 2.0, 3.0]), np.array([2.5, 4.0])
    assert ratios.distance(a, b) == pytest.approx(2 / 3)
    assert ratios.distance(a, a) == 0
