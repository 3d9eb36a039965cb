"""The verdict on a terminal: whole words at every width, names as they are."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedsim.app.verdict_table import print_verdict
from fedsim.storage.directory import RunDirectory

BRANCHES = {"keep": "Keep", "retrain": "Retrain", "grad_diff": "Gradient difference", "npo": "NPO (gentle)"}


def verdict_row(branch: str, variant: str, seed: int, **values: Any) -> dict[str, Any]:
    return {
        "branch": branch,
        "variant": variant,
        "seed": seed,
        "request": 1,
        "class": "approximate",
        "reference": "retrain",
        "value": 0.5,
        "excess": -0.0001,
        "forgetting_fraction": 1.01,
        "time_to_reference": 3.0 if seed == 1 else None,
        "forget_quality_d": 0.4,
        "round": 24,
        "judgement": {
            "kind": "below",
            "comparisons": [{"metric": "nll", "difference": -0.7}],
            "membership_auc": 0.26,
        },
        "utility_excess": -0.0001,
        "collateral_worst": -0.19,
        "cost_share": None if branch == "keep" else 0.21,
    } | values


@pytest.fixture
def finished(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path)
    variants = ["lr=0.1", "lr=0.2"]
    run.write_json(
        "life",
        {
            "headline": "fact_probability",
            "variants": [{"name": name, "overrides": {}} for name in variants],
            "requests": [{"request": 1, "round": 16, "text": "client 3 asks to be forgotten"}],
            "branches": [{"name": name, "title": title} for name, title in BRANCHES.items()],
        },
    )
    informative = {
        "request": 1,
        "seed": 1,
        "n": 9,
        "informative": True,
        "sentence": "keep knows [all] of " + "it " * 40,
    }
    rows = [verdict_row(b, v, seed) for b in BRANCHES for v in variants for seed in (1, 2)]
    for row in rows:
        row["time_to_reference"] = 3.0 if row["variant"] == "lr=0.1" else row["time_to_reference"]
    told = [{**informative, "variant": name, "seed": seed} for name in variants for seed in (1, 2)]
    summary = [{"variant": name, "title": "NPO over-forgets", "notes": ["A note."]} for name in variants]
    run.write_json("verdict", {"rows": rows, "informative": told, "summary": summary})
    return run


def printed(run: RunDirectory, width: int) -> list[str]:
    stream = io.StringIO()
    print_verdict(run, Console(file=stream, width=width))
    return [line.rstrip() for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize("width", [80, 100, 120])
def test_nothing_is_cut(finished: RunDirectory, width: int) -> None:
    lines = printed(finished, width)
    assert not any("…" in line for line in lines)
    assert max(len(line) for line in lines) <= width
    text = "\n".join(lines)
    assert all(f"\n{title}  " in text for title in BRANCHES.values())
    assert all(word in text for word in ("knows", "excess", "member", "shown", "worst", "cost"))
    assert ("class" in text and "approximate" in text) == (width >= 120)


def test_names_in_brackets_are_not_taken_for_markup(finished: RunDirectory) -> None:
    lines = printed(finished, 100)
    assert "Request 1 [lr=0.1]: client 3 asks to be forgotten after round 16" in lines
    assert any("keep knows [all] of it" in line for line in lines)


def test_cells_say_what_there_is(finished: RunDirectory) -> None:
    rows = [line.split() for line in printed(finished, 120) if line.startswith("NPO (gentle)")]
    measured = ["+0.70", "0.26", "0.40", "less", "0.000", "-0.19", "0.21"]
    assert rows[0][2:] == ["approximate", "0.50", "0.00", "101%", "3", *measured]
    assert rows[1][5:9] == ["3", "(1", "of", "2)"]


def test_seeds_that_are_not_informative_are_not_averaged_in(finished: RunDirectory) -> None:
    verdict = finished.json("verdict")
    for row in verdict["rows"]:
        row["value"] = 0.5 if row["seed"] == 1 else 0.1
    for one in verdict["informative"]:
        one["informative"] = one["seed"] == 1
    finished.write_json("verdict", verdict)
    lines = printed(finished, 120)
    (first, _) = [line.split() for line in lines if line.startswith("NPO (gentle)")]
    assert first[3] == "0.50"
    assert "  judged after round 24; mean of 1 informative of 2 seeds, n = 9 records" in lines
    assert any(line.strip().startswith("seed 2: NOT informative") for line in lines)
    assert "NPO over-forgets." in lines


def test_a_life_without_requests(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_json("life", {"headline": "nll", "variants": [], "requests": [], "branches": []})
    run.write_json("verdict", {"rows": [], "informative": [], "summary": []})
    assert printed(run, 80) == ["No forget request in this life: nothing to compare."]


def test_faults_on_the_way_are_counted_once(finished: RunDirectory) -> None:
    assert not [line for line in printed(finished, 100) if "On the way" in line]
    where = {"variant": "lr=0.1", "seed": 1, "branch": "keep", "round": 2}
    for _ in range(2):  # as a resumed run logs it
        finished.log("client_failed", client=4, reason="out of memory", **where)
    finished.log("empty_round", reason="nobody contributed", **where)
    told = "On the way: 1 client failures, 1 empty rounds; events.jsonl has each one."
    assert printed(finished, 100)[0].strip() == told
