"""What `fedsim validate` says of the data: names, counts, overlap, what cannot be judged, rounds to run."""

import json
from pathlib import Path

import pytest

from fedsim.app.catalogue import describe
from fedsim.assembly.build import load_and_check, make_context, rounds_over_seeds
from fedsim.scenario.file import ScenarioError, load_scenario
from tests.e2e.runs import BRIEF, merged, write_scenario

CITIES = ("Oslo", "Rome", "Lima", "Graz")


def line(client, number, city):
    return {"client": client, "question": f"Where is house {number}?", "answer": f"In {city}."}


def stored(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def loaded(folder, rows, *, forget="clinic-b", holdout=(), **more):
    data = {"source": "jsonl", "path": stored(folder / "mine.jsonl", rows)}
    if holdout:
        data["holdout"] = stored(folder / "hold.jsonl", holdout)
    life = [
        {"join": {"clients": "all"}},
        {"train": {"rounds": 2}},
        {"forget": {"client": forget}},
        {"train": {"rounds": 1}},
    ]
    return load_scenario(write_scenario(folder, merged(BRIEF, timeline=life, data=data, **more)))


def rows_of(*clients):
    return [
        line(client, 10 * k + n, city) for k, client in enumerate(clients) for n, city in enumerate(CITIES)
    ]


def said(run):
    return " ".join(" ".join(describe(run)).split())


def test_who_holds_what_and_what_is_shared_is_said(tmp_path: Path) -> None:
    rows = [*rows_of("clinic-b", "clinic-a"), line("clinic-a", 0, "OSLO"), line("clinic-a", 1, "Rome")]
    text = said(loaded(tmp_path, rows))
    assert "2 clients hold 10 records: 4 (client clinic-b) to 6 (client clinic-a), median 5; 0 in the" in text
    assert "Clients by number, in order of first appearance: 0 = clinic-b, 1 = clinic-a." in text
    assert "There is no holdout" in text
    assert (
        "2 records are held by two clients or more: 2 in client clinic-b and client clinic-a (mine:1 = mine:9"
        in text
    )
    assert "2 of client clinic-b's 4 facts are also client clinic-a's" in text


def test_a_request_concerns_the_lines_that_carry_its_clients_number(tmp_path: Path) -> None:
    run = loaded(tmp_path, rows_of(2, 0, 1), forget=2)
    (request,) = make_context(load_and_check(run), run.variants[0], 1).life.requests
    assert request.record_ids == ("mine:1", "mine:2", "mine:3", "mine:4")


def test_a_holdout_that_a_client_holds_is_refused_at_its_key(tmp_path: Path) -> None:
    rows = rows_of("clinic-b", "clinic-a")
    with pytest.raises(
        ScenarioError, match=r"data\.holdout: 1 record of the holdout also stands .*mine:5 = hold:2"
    ):
        load_and_check(loaded(tmp_path, rows, holdout=[line(None, 99, "Rome"), rows[4]]))


def test_rounds_are_counted_over_all_seeds(tmp_path: Path) -> None:
    run = loaded(tmp_path, rows_of("clinic-b", "clinic-a", "clinic-c"), seeds=[1, 2, 3])
    simulation = load_and_check(run)
    lives = [make_context(simulation, run.variants[0], seed) for seed in (1, 2, 3)]
    each = [life.rounds() for life in lives]
    assert rounds_over_seeds(run.variants[0], lives[0].model) == sum(each)
    assert f"{sum(each)} rounds to run over all branches and 3 seeds" in said(run)


@pytest.mark.parametrize(("delta", "empty"), [(0.1, False), (0.5, True)])
def test_a_delta_that_one_client_published_whole_would_keep_is_called_meaningless(
    tmp_path: Path, delta: float, empty: bool
) -> None:
    stages = [{"stage": "clip", "norm": 1.0}, {"stage": "client_dp", "noise_multiplier": 1.0, "delta": delta}]
    weighting = {"weighting": "uniform"}
    run = loaded(tmp_path, rows_of("clinic-b", "clinic-a"), privacy=stages, federation=weighting)
    text = said(run)
    why = "meaningless: δ is not below 1/2, so publishing one client of the 2 whole would keep it"
    assert (why in text) == empty
    assert f"at δ = {delta:g}" in text
