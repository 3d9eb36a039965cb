"""From small tables, made by hand, to trajectories and verdicts."""

import json
import math

import numpy as np
import pytest

from fedsim.data.names import ClientNames
from fedsim.evidence.judgements import _harm, divergence_notes
from fedsim.evidence.tables import LifeTables, forget_quality_rows, informative_rows, trajectories, trust_rows
from fedsim.evidence.verdict import verdict_rows
from fedsim.life.schedule import answers
from fedsim.life.script import Life
from fedsim.life.steps import Line
from fedsim.measuring.config import ProbesConfig
from fedsim.storage.tables import COSTS, METRICS, TRAJECTORIES
from fedsim.unlearning.methods.grad_diff import GradDiff
from fedsim.unlearning.methods.retrain import Retrain
from fedsim.unlearning.request import Request

REQUEST = Request(number=1, client=3, round=2, scope="client", record_ids=("r0", "r1", "r2"))
LIFE = Life(horizon=6, events=(), requests=(REQUEST,))
CONFIG = ProbesConfig(tolerance=0.05, window=2)
METHOD = GradDiff(rounds=2)
METHODS = {"grad_diff": METHOD, "idle": GradDiff(rounds=2, label="idle")}
BRANCHES = ["keep", "leave", "retrain", "grad_diff", "idle"]
ROUNDS = range(2, 7)
SERIES = {
    "keep": [0.9, 0.9, 0.9, 0.9, 0.9],
    "leave": [0.9, 0.8, 0.7, 0.6, 0.5],
    "retrain": [0.1, 0.1, 0.1, 0.1, 0.1],
    "grad_diff": [0.9, 0.5, 0.1, 0.12, 0.14],
    "idle": [0.9, 0.9, 0.9, 0.9, 0.9],
}
SPREAD = [-0.02, 0.0, 0.02]
WHO = {"variant": "base", "seed": 1}


def metric_row(branch: str, round_: int, value: float, subject="forget:1", metric="fact_probability") -> dict:
    row = {"branch": branch, "round": round_, "event": "", "subject": subject, "metric": metric}
    return WHO | row | {"value": value}


def item_rows(branch: str, round_: int, values: list[float], subject="forget:1", metric="fact_probability"):
    row = {"branch": branch, "round": round_, "event": "", "subject": subject, "metric": metric}
    return [WHO | row | {"record": f"r{i}", "value": value} for i, value in enumerate(values)]


def cost_row(branch: str, round_: int, steps: int | None, *, kind="train", request=0) -> dict:
    counts = dict.fromkeys(COSTS.names[6:], 0) | {"client_steps": steps, "bytes_down": 10, "bytes_up": 1}
    return WHO | {"branch": branch, "round": round_, "kind": kind, "request": request} | counts


def make_tables(series=SERIES, *, costs=(), extra=(), items=None, replay=None) -> LifeTables:
    metrics = [
        metric_row(branch, round_, value)
        for branch, values in series.items()
        for round_, value in zip(ROUNDS, values, strict=True)
        if value is not None
    ]
    if items is None:
        items = [
            row
            for branch, values in series.items()
            for round_, value in zip(ROUNDS, values, strict=True)
            if value is not None
            for row in item_rows(branch, round_, [value + delta for delta in SPREAD])
        ]
    tables = {"metrics": [*metrics, *extra], "items": items, "costs": list(costs)}
    return LifeTables.of("base", 1, tables, {Line(): replay or {1: 1}})


def verdict(tables: LifeTables, branch: str, life: Life = LIFE, config: ProbesConfig = CONFIG) -> dict:
    (row,) = [r for r in verdict_rows(tables, life, config, BRANCHES, METHODS) if r["branch"] == branch]
    json.dumps(row, allow_nan=False)
    return row


# ------------------------------------------------------------------------------ trajectories


def test_trajectories_by_hand() -> None:
    rows = [row for row in trajectories(make_tables(), LIFE, BRANCHES) if row["branch"] == "grad_diff"]
    assert [row["round"] for row in rows] == [2, 3, 4, 5, 6]
    assert [row["excess"] for row in rows] == pytest.approx([0.8, 0.4, 0.0, 0.02, 0.04])
    assert [row["forgetting_fraction"] for row in rows] == pytest.approx([0.0, 0.5, 1.0, 0.975, 0.95])
    assert [row["method_effect"] for row in rows] == pytest.approx([0.0, 0.3, 0.6, 0.48, 0.36])
    assert all(set(row) == set(TRAJECTORIES.names) for row in rows)


def test_rounds_before_the_request_have_no_trajectory() -> None:
    early = [metric_row(branch, round_, 0.5) for branch in BRANCHES for round_ in (0, 1)]
    rows = trajectories(make_tables(extra=early), LIFE, BRANCHES)
    assert min(row["round"] for row in rows) == 2


def test_only_rounds_that_all_references_have_are_compared() -> None:
    series = SERIES | {"leave": [0.9, None, 0.7, 0.6, 0.5]}
    rows = [row for row in trajectories(make_tables(series), LIFE, BRANCHES) if row["branch"] == "keep"]
    assert [row["round"] for row in rows] == [2, 4, 5, 6]


def test_without_items_there_is_no_fraction_but_an_excess() -> None:
    rows = trajectories(make_tables(items=[]), LIFE, ["grad_diff"])
    assert all(math.isnan(row["forgetting_fraction"]) for row in rows)
    assert [row["excess"] for row in rows] == pytest.approx([0.8, 0.4, 0.0, 0.02, 0.04])


def test_a_gap_within_its_error_has_no_fraction() -> None:
    wild = [
        row
        for branch, values in (("keep", [1.9, -0.1, 0.9]), ("retrain", [-0.9, 1.1, 0.1]))
        for round_ in ROUNDS
        for row in item_rows(branch, round_, values)
    ]
    rows = trajectories(make_tables(items=wild), LIFE, ["grad_diff"])
    assert all(math.isnan(row["forgetting_fraction"]) for row in rows)


def test_other_seeds_and_variants_are_not_mixed_in() -> None:
    foreign = [metric_row("grad_diff", 6, 9.0) | {"seed": 2}, metric_row("keep", 6, 9.0) | {"variant": "b"}]
    tables = make_tables(extra=foreign)
    assert tables.value("grad_diff", "forget:1", "fact_probability", 6) == 0.14
    assert tables.value("keep", "forget:1", "fact_probability", 6) == 0.9


# ---------------------------------------------------------------------------------- verdicts


def test_a_method_by_hand() -> None:
    """Excess .8 .4 0 .02 .04 after the request in round 2; two rounds of unlearning end in round 4."""
    row = verdict(make_tables(), "grad_diff")
    assert row["class"] == "approximate"
    assert row["value"] == 0.14
    assert row["excess"] == pytest.approx(0.04)
    assert row["forgetting_fraction"] == pytest.approx(0.95)
    assert row["time_to_reference"] == 2
    assert row["exposure"] == pytest.approx(0.8 + 0.4 + 0.02 + 0.04)
    assert row["resurgence"] == pytest.approx(0.04)
    assert row["finding"].startswith(
        "no difference from the reference at round 6, within the margins (n = 3)"
    )


def test_a_method_that_does_nothing_is_shown_to_do_nothing() -> None:
    tables = make_tables()
    idle, keep = verdict(tables, "idle"), verdict(tables, "keep")
    same = ("value", "excess", "forgetting_fraction", "time_to_reference", "exposure", "forget_quality_p")
    assert {key: idle[key] for key in same} == {key: keep[key] for key in same}
    assert idle["excess"] == pytest.approx(0.8)
    assert idle["forgetting_fraction"] == 0.0
    assert idle["time_to_reference"] is None
    assert (
        idle["finding"]
        == "still knows more than the reference at round 6: fact probability +0.80 (+0.80 to +0.80)"
    )
    rows = [row for row in trajectories(tables, LIFE, BRANCHES) if row["branch"] == "idle"]
    assert all(row["method_effect"] <= 0 for row in rows)


def test_a_method_that_only_leaves_has_no_effect_of_its_own() -> None:
    tables = make_tables(SERIES | {"idle": SERIES["leave"]})
    rows = [row for row in trajectories(tables, LIFE, BRANCHES) if row["branch"] == "idle"]
    assert [row["method_effect"] for row in rows] == [0.0] * 5
    assert verdict(tables, "idle")["excess"] == verdict(tables, "leave")["excess"]


def test_methods_are_ranked_by_what_is_left() -> None:
    rows = {branch: verdict(make_tables(), branch) for branch in BRANCHES}
    order = sorted(BRANCHES, key=lambda branch: abs(rows[branch]["excess"]))
    assert order == ["retrain", "grad_diff", "leave", "keep", "idle"]


def test_the_reference_is_the_reference() -> None:
    row = verdict(make_tables(), "retrain")
    assert (row["class"], row["excess"], row["forgetting_fraction"]) == ("exact", 0.0, 1.0)
    assert row["finding"] == "the reference"
    assert row["forget_quality_p"] is None  # truth ratios were not measured


def test_forgetting_too_much_is_said() -> None:
    row = verdict(make_tables(SERIES | {"grad_diff": [0.9, 0.0, 0.0, 0.0, 0.0]}), "grad_diff")
    assert row["excess"] == pytest.approx(-0.1)
    assert "over-forgotten" in row["finding"]


def test_coming_back_is_resurgence() -> None:
    row = verdict(make_tables(SERIES | {"grad_diff": [0.9, 0.5, 0.1, 0.6, 0.5]}), "grad_diff")
    assert row["resurgence"] == pytest.approx(0.5)
    assert row["time_to_reference"] is None


def test_requests_wait_for_each_other() -> None:
    """Two requests in one round, two rounds each: the second is done two rounds after the first."""
    requests = tuple(
        Request(number=number, client=number, round=round_, scope="client", record_ids=("r0",))
        for number, round_ in ((1, 2), (2, 2), (3, 9))
    )
    life = Life(horizon=12, events=(), requests=requests)
    assert [answer.last for answer in answers(life, METHOD)] == [4, 6, 11]


# ------------------------------------------------------------------------------------- costs


def test_costs_are_a_share_of_the_replay_up_to_the_request() -> None:
    """Replay of rounds 1 and 2: 10 + 20 steps. The method spent 6 + 4; what others spent is not counted."""
    costs = [
        *(cost_row("retrain#1", round_, steps) for round_, steps in ((1, 10), (2, 20), (3, 40))),
        *(cost_row("grad_diff", round_, steps) for round_, steps in ((1, 10), (2, 20), (5, 40))),
        cost_row("grad_diff", 3, 6, kind="unlearn", request=1),
        cost_row("grad_diff", 4, 4, kind="empty", request=1),
        cost_row("grad_diff", 6, 99, kind="unlearn", request=2),
    ]
    tables = make_tables(costs=costs)
    row = verdict(tables, "grad_diff")
    assert (row["client_steps"], row["rounds"], row["bytes"]) == (10, 2, 22)
    assert row["cost_share"] == pytest.approx(1 / 3)
    row = verdict(tables, "retrain")
    assert (row["client_steps"], row["rounds"], row["cost_share"]) == (30, 2, 1.0)
    row = verdict(tables, "keep")
    assert (row["client_steps"], row["cost_share"]) == (0, 0.0)


def test_replay_starts_where_the_reference_parts() -> None:
    costs = [cost_row("retrain#1", round_, 10) for round_ in range(1, 7)]
    assert verdict(make_tables(costs=costs, replay={1: 2}), "retrain")["client_steps"] == 10


def test_steps_that_clients_do_not_tell_are_not_zero() -> None:
    costs = [cost_row("retrain#1", 1, None), cost_row("grad_diff", 3, None, kind="unlearn", request=1)]
    for branch in ("grad_diff", "retrain"):
        row = verdict(make_tables(costs=costs), branch)
        assert (row["client_steps"], row["cost_share"]) == (None, None)
    assert verdict(make_tables(costs=costs), "grad_diff")["bytes"] == 11


def test_a_client_that_never_took_part_needs_no_replay() -> None:
    costs = [cost_row("retrain#1", round_, 10) for round_ in range(1, 7)]
    row = verdict(make_tables(costs=costs, replay={1: 3}), "retrain")
    assert (row["client_steps"], row["cost_share"]) == (0, None)


# --------------------------------------------------------------------- utility and collateral


def test_utility_and_collateral_by_hand() -> None:
    extra = [
        metric_row("retrain", 6, 0.8, "model", "model_utility"),
        metric_row("grad_diff", 6, 0.7, "model", "model_utility"),
        metric_row("grad_diff", 4, 0.1, "model", "model_utility"),
    ]
    clients = {"retrain": (0.9, 0.8, 0.1), "grad_diff": (0.85, 0.5, 0.1)}
    extra += [
        metric_row(branch, 6, value, f"client:{client}")
        for branch, values in clients.items()
        for client, value in zip((2, 10, 3), values, strict=True)
    ]
    row = verdict(make_tables(extra=extra), "grad_diff")
    assert (row["utility"], row["utility_excess"]) == (0.7, pytest.approx(-0.1))
    assert row["collateral_mean"] == pytest.approx(-0.175)
    assert row["collateral_worst"] == pytest.approx(-0.3)
    assert row["collateral_worst_client"] == 10  # the forgotten client 3 is nobody's collateral
    assert verdict(make_tables(), "grad_diff")["collateral_mean"] is None


def test_forget_quality_by_hand() -> None:
    """Three truth ratios that do not overlap: D = 1, p = 2 / C(6, 3)."""
    items = [
        *item_rows("retrain", 6, [1.0, 1.1, 1.2], metric="truth_ratio_raw"),
        *item_rows("grad_diff", 6, [0.1, 0.2, math.nan], metric="truth_ratio_raw"),
        *item_rows("keep", 6, [0.1, 0.2, 0.3], metric="truth_ratio_raw"),
        *item_rows("leave", 6, [math.nan] * 3, metric="truth_ratio_raw"),
    ]
    tables = make_tables(items=items)
    keep = verdict(tables, "keep")
    assert (keep["forget_quality_d"], keep["forget_quality_n"]) == (1.0, 3.0)
    assert keep["forget_quality_p"] == pytest.approx(0.1)
    assert verdict(tables, "grad_diff")["forget_quality_n"] == 2.0
    assert verdict(tables, "leave")["forget_quality_p"] is None
    assert verdict(tables, "retrain")["forget_quality_p"] == 1.0
    rows = forget_quality_rows(tables, LIFE, BRANCHES)
    assert {row["branch"] for row in rows} == {"keep", "grad_diff", "retrain"}
    assert all(set(row) == set(METRICS.names) for row in rows)


# ------------------------------------------------------------------------------ what is missing


@pytest.mark.parametrize("missing", ["grad_diff", "retrain", "keep", "leave"])
def test_a_branch_that_was_never_measured_gives_nulls(missing: str) -> None:
    tables = make_tables({name: values for name, values in SERIES.items() if name != missing})
    for branch in BRANCHES:
        row = verdict(tables, branch)
        if branch == missing or missing != "grad_diff":
            assert row["excess"] is None
            assert row["exposure"] is None
            assert row["finding"] == "fact probability was not measured at round 6"
    rows = trajectories(tables, LIFE, BRANCHES)
    assert missing not in {row["branch"] for row in rows}
    assert forget_quality_rows(tables, LIFE, BRANCHES) == []
    informative_rows(tables, LIFE, CONFIG)
    trust_rows([(tables, LIFE)])


def test_a_branch_that_diverged_before_the_end_is_not_judged_by_its_last_good_round() -> None:
    row = verdict(make_tables(SERIES | {"grad_diff": [0.9, 0.1, 0.1, None, None]}), "grad_diff")
    assert row["value"] is None
    assert row["excess"] is None
    assert row["forgetting_fraction"] is None
    assert row["time_to_reference"] is None
    assert row["finding"] == "fact probability was not measured at round 6"


def test_no_measurement_at_the_request() -> None:
    series = {name: [None, *values[1:]] for name, values in SERIES.items()}
    row = verdict(make_tables(series), "grad_diff")
    assert row["excess"] == pytest.approx(0.04)
    assert row["exposure"] is None


def test_empty_tables() -> None:
    tables = LifeTables.of("base", 1, {"metrics": [], "items": [], "costs": []}, {Line(): {1: 3}})
    assert trajectories(tables, LIFE, BRANCHES) == []
    assert forget_quality_rows(tables, LIFE, BRANCHES) == []
    assert trust_rows([(tables, LIFE)]) == []
    for branch in BRANCHES:
        assert verdict(tables, branch)["excess"] is None
    (row,) = informative_rows(tables, LIFE, CONFIG)
    assert row["informative"] is False
    nobody = Life(horizon=6, events=(), requests=())
    assert verdict_rows(tables, nobody, CONFIG, BRANCHES, METHODS) == []
    assert informative_rows(tables, nobody, CONFIG) == []


# -------------------------------------------------------------------- informative and trusted


def knowing(keep: float, retrain: float, holdout: float | None) -> LifeTables:
    spread = np.linspace(-0.01, 0.01, 6)
    sides = [("keep", "forget:1", keep), ("retrain", "forget:1", retrain), ("retrain", "holdout", holdout)]
    items = [
        row
        for branch, subject, value in sides
        if value is not None
        for row in item_rows(branch, 2, (value + spread).tolist(), subject=subject)
    ]
    return make_tables(items=items)


@pytest.mark.parametrize(
    ("keep", "retrain", "holdout", "informative"),
    [(0.95, 0.1, 0.1, True), (0.3, 0.1, 0.1, False), (0.95, 0.9, 0.1, False)],
)
def test_a_run_is_informative_when_there_was_something_to_forget(
    keep: float, retrain: float, holdout: float, informative: bool
) -> None:
    (row,) = informative_rows(knowing(keep, retrain, holdout), LIFE, CONFIG)
    assert row["informative"] is informative
    assert (row["keep"], row["retrain"], row["holdout"]) == pytest.approx((keep, retrain, holdout))
    assert row["request"] == 1
    assert row["sentence"]


def test_without_holdout_nothing_can_be_judged() -> None:
    (row,) = informative_rows(knowing(0.9, 0.1, None), LIFE, CONFIG)
    assert row["informative"] is False
    assert row["sentence"] == "Cannot be judged: fact_probability of holdout is missing at round 2."
    assert (row["keep"], row["holdout"]) == (pytest.approx(0.9), None)


def test_a_headline_that_no_record_has_cannot_be_judged() -> None:
    config = CONFIG.model_copy(update={"headline": "paraphrase_probability"})
    items = [
        row
        for branch, subject in (("keep", "forget:1"), ("retrain", "forget:1"), ("retrain", "holdout"))
        for row in item_rows(branch, 2, [math.nan] * 3, subject, "paraphrase_probability")
    ]
    (row,) = informative_rows(make_tables(items=items), LIFE, config)
    assert row["informative"] is False
    assert "keep and retrain and holdout" in row["sentence"]
    assert row["keep"] is None


def test_trust_is_the_chance_to_tell_keep_from_retrain() -> None:
    items = [
        *item_rows("keep", 2, [0.9, 0.8, 0.7]),
        *item_rows("retrain", 2, [0.1, 0.2, 0.3]),
        *item_rows("keep", 2, [0.1, 0.5, 0.3], metric="probability"),
        *item_rows("retrain", 2, [0.2, 0.4, 0.3], metric="probability"),
        *item_rows("keep", 2, [0.1, 0.2, 0.3], metric="nll"),
        *item_rows("retrain", 2, [2.0, 3.0, 4.0], metric="nll"),
        *item_rows("keep", 5, [0.0, 0.0, 0.0]),  # only the request's own round counts
    ]
    rows = {row["metric"]: row for row in trust_rows([(make_tables(items=items), LIFE)])}
    assert (rows["fact_probability"]["auc"], rows["fact_probability"]["trusted"]) == (1.0, True)
    assert rows["probability"]["auc"] == pytest.approx(0.5, abs=0.1)
    assert not rows["probability"]["trusted"]
    assert (rows["nll"]["auc"], rows["nll"]["trusted"]) == (1.0, True)  # lower means knows more


def test_retrain_in_the_list_of_methods_is_not_a_branch_of_its_own() -> None:
    methods = METHODS | {"retrain": Retrain()}
    rows = verdict_rows(make_tables(), LIFE, CONFIG, BRANCHES, methods)
    assert [row["branch"] for row in rows] == BRANCHES


def test_a_client_that_is_harmed_is_called_by_its_name() -> None:
    row = {"collateral_worst": -0.5, "collateral_null": 0.0, "collateral_worst_client": 1}
    names = ClientNames.of(["clinic-b", "clinic-a"])
    assert _harm(row, ProbesConfig(), names) == (
        "; client clinic-a, who stayed, loses 0.50 (in keep nobody loses more than 0.00)"
    )


@pytest.mark.parametrize(("after", "diverged"), [(8.9, True), (0.3, False), (2.0, False)])
def test_training_that_makes_its_own_records_less_likely_has_diverged(after: float, diverged: bool) -> None:
    nll = [
        metric_row("keep", 0, 2.0, metric="nll"),
        metric_row("keep", LIFE.requests[0].round, after, metric="nll"),
    ]
    notes = divergence_notes(make_tables(extra=nll), LIFE)
    assert bool(notes) is diverged
    if diverged:
        assert "costs 8.9 nats a token in keep, and 2.0 before any training" in notes[0]
    assert divergence_notes(make_tables(), LIFE) == []  # nothing measured, nothing said
