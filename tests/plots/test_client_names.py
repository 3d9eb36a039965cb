"""Figures and tables call clients what the data call them."""

from __future__ import annotations

import pytest
from matplotlib.text import Text

from fedsim.storage.directory import RunDirectory
from plots import clients, epsilon, tables, timeline
from plots.data import RunData
from tests.plots.synthetic import Plan, build


@pytest.fixture(name="run", scope="module")
def _run(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    """A run whose clients are called ``ward-$0$``, ``ward-$1$``, ...: nothing in a name is markup."""
    plan = Plan()
    folder = build(tmp_path_factory.mktemp("named"), plan)
    named = [{"client": k, "name": f"ward-${k}$", "records": 9} for k in range(plan.clients)]
    RunDirectory(folder).write_json("data", {"lives": [{"variant": "base", "seed": 1, "clients": named}]})
    return RunData.load(folder)


def texts(figure: object) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text)]  # type: ignore[attr-defined]


def test_requests_and_events_have_names(run: RunData) -> None:
    assert [request.who for request in run.requests] == [f"client ward-${r.client}$" for r in run.requests]
    labels = [event.label for event in run.events]
    assert any(label.startswith("forget ward-$") for label in labels)
    assert any(label.startswith("join ") and label.endswith(" clients") for label in labels)


def test_a_long_name_is_cut_to_what_a_figure_has_room_for(run: RunData) -> None:
    named = [{"client": 0, "name": "a" * 400, "records": 1}]
    other = RunData(**{**vars_of(run), "data": {"lives": [{"clients": named}]}})
    assert len(other.called(0)) <= 20


def vars_of(run: RunData) -> dict[str, object]:
    return {name: getattr(run, name) for name in RunData.__dataclass_fields__}


def test_the_figures_show_names(run: RunData) -> None:
    variant = run.variants[0]
    asked = f"ward-${run.requests[0].client}$"
    drawn = [timeline.draw(run, variant), clients.draw(run, variant)]
    for figure in drawn:
        assert figure is not None
        assert any(asked in text for text in texts(figure))


def test_tables_show_names(run: RunData) -> None:
    variant = run.variants[0]
    for metric in (epsilon.METRIC, epsilon.CLIENT_METRIC):
        for *_, asked in tables.epsilon_rows(run, variant, metric):
            assert f"client ward-${run.requests[0].client}$: " in asked


def test_a_run_without_names_counts_clients(load: object) -> None:
    run = load()  # type: ignore[operator]
    assert [request.who for request in run.requests] == [f"client {r.client}" for r in run.requests]
