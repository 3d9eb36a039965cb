"""Relearning on a small life: what is trained on, what is asked, and that the run does not notice."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.app import runs
from fedsim.assembly.build import load_and_check, make_context
from fedsim.audits.kinds.relearning import Relearning
from fedsim.audits.protocol import FinishedLife
from fedsim.living.runner import LifeRunner
from fedsim.scenario.file import ScenarioError, load_scenario
from fedsim.storage.directory import RunDirectory
from fedsim.storage.progress import Quiet
from tests.e2e.runs import BRIEF, RESULTS, differences, finish, merged, run, write_scenario
from tests.world import same

EPOCHS = (1, 4)
LIFE = merged(
    BRIEF,
    timeline=[
        {"join": {"clients": "0-2"}},
        {"train": {"rounds": 1}},
        {"forget": {"client": 1}},
        {"train": {"rounds": 1}},
        {"forget": {"client": 2, "fraction": 0.5}},
        {"train": {"rounds": 1}},
    ],
    compare=[{"method": "npo", "rounds": 1}, {"method": "keyword_filter"}],
    execution__cohort=1,
)
AUDITED = LIFE | {"audits": [{"audit": "relearning", "epochs": list(EPOCHS)}]}
BRANCHES = {"keep", "leave", "retrain", "npo", "keyword_filter"}
PARTS = ("relearned", "held back")
Row = dict[str, Any]


def every(audit: Relearning, life) -> list[dict]:
    """The rows of all parts of an audit."""
    return [row for part in audit.parts(life) for row in audit.rows(life, part)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run(tmp_path_factory.mktemp("audited"), AUDITED)


@pytest.fixture(scope="module")
def rows(whole: RunDirectory) -> list[Row]:
    found: list[Row] = whole.json("audits")["relearning"]
    return found


@pytest.fixture(scope="module")
def finished(whole: RunDirectory) -> FinishedLife:
    """The run's life with everything that an audit may ask of it."""
    simulation = runs.reopen(whole)
    (variant,) = simulation.loaded.variants
    context = make_context(simulation, variant, 1)
    runner = LifeRunner(context, whole, Quiet())
    return FinishedLife(context=context, federation=runner.final_federation, note=lambda text: None)


def value_of(rows: list[Row], **where: object) -> float:
    (found,) = [row for row in rows if all(row[key] == value for key, value in where.items())]
    return float(found["value"])


# ------------------------------------------------------------------------------------- the parts


def test_every_record_is_in_one_part() -> None:
    ids = [f"r{number}" for number in range(9)]
    parts = Relearning(share=0.4).split(ids, 1, 1)
    assert sorted([*parts["relearned"], *parts["held back"]]) == ids
    assert (len(parts["relearned"]), len(parts["held back"])) == (4, 5)


def test_who_is_in_which_part_is_keyed_by_seed_request_and_record() -> None:
    ids = [f"r{number}" for number in range(20)]
    audit = Relearning()
    parts = audit.split(ids, 1, 1)
    backwards = audit.split(ids[::-1], 1, 1)
    assert {part: set(names) for part, names in parts.items()} == {p: set(n) for p, n in backwards.items()}
    assert audit.split(ids, 2, 1) != parts
    assert audit.split(ids, 1, 2) != parts
    fewer = audit.split([name for name in ids if name not in parts["held back"][:2]], 1, 1)
    assert set(fewer["relearned"]) < set(parts["relearned"])  # 9 of the 10 that were drawn first


# --------------------------------------------------------------------------------------- the rows


def test_there_is_a_row_for_everything_that_was_asked(rows: list[Row]) -> None:
    views = [*((branch, "bare") for branch in BRANCHES), ("keyword_filter", "guarded")]
    wanted = {
        (request, *who, epochs, part, metric)
        for request, who, epochs, part, metric in itertools.product(
            (1, 2), views, (0, *EPOCHS), PARTS, ("fact_probability", "nll")
        )
    }
    keys = ("request", "branch", "view", "epochs", "part", "metric")
    found = [tuple(row[key] for key in keys) for row in rows]
    assert set(found) == wanted
    assert len(found) == len(wanted)
    assert {(row["variant"], row["seed"], row["audit"]) for row in rows} == {("base", 1, "relearning")}
    sizes = {(row["request"], row["part"]): row["n"] for row in rows}
    assert sizes == {(1, "relearned"): 4, (1, "held back"): 5, (2, "relearned"): 2, (2, "held back"): 2}


@pytest.mark.parametrize("metric", ["fact_probability", "nll"])
def test_before_relearning_it_is_what_the_run_measured_last(
    whole: RunDirectory, finished: FinishedLife, rows: list[Row], metric: str
) -> None:
    """Users see a guarded model through its guard, so that is what the run's own tables hold."""
    horizon = finished.context.life.horizon
    items = {
        (row["branch"], row["record"]): row["value"]
        for row in whole.table("items").to_pylist()
        if (row["round"], row["metric"]) == (horizon, metric) and row["subject"].startswith("forget:")
    }
    for request in finished.context.life.requests:
        parts = Relearning(epochs=EPOCHS).split(request.record_ids, 1, request.number)
        for branch, part in itertools.product(BRANCHES, PARTS):
            view = "guarded" if branch == "keyword_filter" else "bare"
            where = {"request": request.number, "branch": branch, "view": view, "metric": metric}
            by_hand = np.mean([items[branch, record] for record in parts[part]])
            assert value_of(rows, **where, epochs=0, part=part) == pytest.approx(by_hand, rel=1e-12)


def test_what_is_trained_on_is_learned(rows: list[Row]) -> None:
    for request in (1, 2):
        where = {"request": request, "branch": "retrain", "metric": "nll", "part": "relearned"}
        before, after = (value_of(rows, **where, epochs=epochs) for epochs in (0, 4))
        assert after < 0.8 * before


def test_a_guard_hides_what_is_learned_from_users_alone(rows: list[Row]) -> None:
    """Under its guard the model is the one of ``leave``, and so it is attacked."""
    where = {"request": 1, "metric": "nll", "part": "relearned", "epochs": 4}
    bare = value_of(rows, branch="keyword_filter", view="bare", **where)
    assert bare == value_of(rows, branch="leave", **where)
    assert value_of(rows, branch="keyword_filter", view="guarded", **where) > bare + 1


def test_relearning_the_reference_against_itself_leaves_no_excess(finished: FinishedLife) -> None:
    """The negative control: with one adapter for all branches, all of them relearn the same."""
    same_everywhere = replace(finished, federation=lambda branch: finished.federation("retrain#2"))
    rows = [row for row in every(Relearning(epochs=EPOCHS), same_everywhere) if row["view"] == "bare"]
    keys = ("request", "epochs", "part", "metric")
    reference = {tuple(row[key] for key in keys): row["value"] for row in rows if row["branch"] == "retrain"}
    assert {row["value"] - reference[tuple(row[key] for key in keys)] for row in rows} == {0.0}
    assert len({row["branch"] for row in rows}) == len(BRANCHES)


# ---------------------------------------------------------------------------------- the trainings


def test_branches_train_side_by_side_without_a_privacy_rule(
    finished: FinishedLife, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, calls = FinishedLife.train, []

    def noting(self: FinishedLife, jobs: Any) -> Any:
        calls.append(jobs)
        return train(self, jobs)

    monkeypatch.setattr(FinishedLife, "train", noting)
    audit = Relearning(epochs=EPOCHS, lr=0.01, batch_size=2)
    every(audit, finished)
    assert [len(jobs) for jobs in calls] == [len(BRANCHES) * len(EPOCHS)] * 2  # one call a request
    for request, jobs in zip(finished.context.life.requests, calls, strict=True):
        drawn = audit.split(request.record_ids, 1, request.number)["relearned"]
        assert {job.record_ids for job in jobs} == {drawn}
        assert {job.local.epochs for job in jobs} == set(EPOCHS)
        assert {(job.local.lr, job.local.batch_size) for job in jobs} == {(0.01, 2)}
        assert all(job.rule is None and not job.ledger.releases() for job in jobs)
        assert same(jobs[0].adapter, finished.adapter("keep"))


def test_training_that_diverges_is_noted_and_has_no_value(finished: FinishedLife) -> None:
    notes: list[str] = []
    noting = replace(finished, note=notes.append)
    rows = every(Relearning(epochs=(2,), lr=1e9), noting)
    after = [row for row in rows if row["epochs"] == 2]
    assert {(row["value"], row["n"]) for row in after if row["view"] == "bare"} == {(None, 0)}
    assert all(row["value"] is not None for row in rows if row["epochs"] == 0)
    assert notes
    assert all(note.startswith("base: relearning for request ") for note in notes)


def test_a_request_that_cannot_be_parted_is_noted(finished: FinishedLife) -> None:
    """Of four records a tenth is none; of nine it is one."""
    notes: list[str] = []
    rows = every(Relearning(epochs=(1,), share=0.1), replace(finished, note=notes.append))
    assert {row["request"] for row in rows} == {1}
    assert notes == [
        "base: relearning for request 2: not done: a share of 0.1 of its records (4) leaves one part empty"
    ]


# ---------------------------------------------------------------------------------------- the run


def test_the_run_is_the_same_with_and_without_it(whole: RunDirectory, tmp_path: Path) -> None:
    plain = run(tmp_path, LIFE)
    results = tuple(name for name in RESULTS if name != "scenario.yaml")  # which names the audit
    assert differences(whole, plain, results) == []
    assert not plain.file("audits.json").exists()


def test_a_killed_audit_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found for each request is on disk: the one that was killed is all that is done again."""
    scenario = LIFE | {"audits": [{"audit": "relearning", "epochs": [number]} for number in (1, 2)]}
    whole, broken = run(tmp_path / "whole", scenario), RunDirectory(tmp_path / "broken" / "run")
    train, calls = FinishedLife.train, []

    def counting(self: FinishedLife, jobs: Any) -> Any:
        calls.append(jobs[0].local.epochs)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return train(self, jobs)

    monkeypatch.setattr(FinishedLife, "train", counting)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", scenario)
    finish(broken)
    assert calls == [1, 1, 2, 2, 2]
    assert differences(whole, broken, ("audits.json", "audits.jsonl")) == []


# ----------------------------------------------------------------------------------- what is refused


def refused(folder: Path, **changes: Any) -> str:
    with pytest.raises(ScenarioError) as caught:
        load_and_check(load_scenario(write_scenario(folder, merged(LIFE, **changes))))
    return str(caught.value).removeprefix(f"{folder / 'scenario.yaml'}:1: ")


def test_a_life_without_requests_is_refused(tmp_path: Path) -> None:
    timeline = [{"join": {"clients": "0-2"}}, {"train": {"rounds": 1}}]
    told = refused(tmp_path, timeline=timeline, compare=[], audits=[{"audit": "relearning"}])
    assert told.startswith("audits[0]: nobody asks to be forgotten")


def test_a_share_that_parts_no_request_is_refused_at_its_key(tmp_path: Path) -> None:
    told = refused(tmp_path, audits=[{"audit": "relearning", "share": 0.01}])
    assert told.startswith("audits[0].share: 0.01 of 9 records, the most of a request, leaves one part empty")


@pytest.mark.parametrize("epochs", [[2, 1], [1, 1], [0, 1], []])
def test_budgets_that_do_not_increase_are_refused(tmp_path: Path, epochs: list[int]) -> None:
    assert refused(tmp_path, audits=[{"audit": "relearning", "epochs": epochs}]).startswith(
        "audits[0].epochs"
    )
