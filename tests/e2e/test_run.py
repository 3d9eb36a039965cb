"""Whole runs on the embedded base: everything between a scenario file and a verdict."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import pld_privacy_accountant

from fedsim.app import runs
from fedsim.federation.orders import WorkOrder
from fedsim.federation.runtime import ClientRuntime
from fedsim.model.vectors import to_vector
from fedsim.scenario.file import load_scenario
from fedsim.storage.directory import RunDirectory
from fedsim.storage.progress import Quiet
from fedsim.training.jobs import TrainJob, TrainResult
from fedsim.training.sequential import SequentialExecutor
from privacy import Ledger, Release
from tests.e2e.runs import (
    BRIEF,
    LIFE,
    RESULTS,
    adapter,
    broken_off,
    differences,
    finish,
    merged,
    run,
    write_scenario,
)

pytestmark = pytest.mark.slow

TRAINED = dict[tuple[int, int, str, tuple[str, ...], str], bytes]


def note_training(monkeypatch: pytest.MonkeyPatch) -> TRAINED:
    """Every training from now on: (client, round, start adapter, records, loss) -> update."""
    trained: TRAINED = {}
    train = SequentialExecutor._train

    def noting(self: SequentialExecutor, job: TrainJob) -> TrainResult:
        result = train(self, job)
        start = hashlib.sha256(to_vector(job.adapter).tobytes()).hexdigest()
        key = (job.client, job.round, start, job.record_ids, type(job.objective).__name__)
        assert trained.setdefault(key, result.update.tobytes()) == result.update.tobytes()
        return result

    monkeypatch.setattr(SequentialExecutor, "_train", noting)
    return trained


@pytest.fixture(scope="module")
def life(tmp_path_factory) -> tuple[RunDirectory, TRAINED]:
    """One uninterrupted run, and every training in it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        trained = note_training(monkeypatch)
        return run(tmp_path_factory.mktemp("life"), LIFE), trained


@pytest.fixture(scope="module")
def whole(life) -> RunDirectory:
    return life[0]


def rows(directory: RunDirectory, table: str, **where: object) -> list[dict]:
    found = directory.table(table).to_pylist()
    return [row for row in found if all(row[key] == value for key, value in where.items())]


# ---------------------------------------------------------------------------- the run directory


def test_a_run_leaves_every_file(whole: RunDirectory) -> None:
    for name in (*RESULTS, "provenance.json", "events.jsonl", "timings.parquet"):
        assert whole.file(name).stat().st_size > 0, name
    kinds = [event["kind"] for event in whole.events()]
    assert kinds[0] == "started"
    assert kinds[-1] == "finished"
    assert {"client_failed", "probe_failed"}.isdisjoint(kinds)
    assert not list(whole.path.rglob("*.tmp"))


def test_every_branch_has_every_round(whole: RunDirectory) -> None:
    branches = ("keep", "leave", "retrain", "grad_diff", "npo")
    for branch in branches:
        measured = rows(whole, "metrics", branch=branch, subject="forget:1", metric="fact_probability")
        assert [row["round"] for row in measured] == list(range(8)), branch
        assert all(0 <= row["value"] <= 1 for row in measured)
    assert {row["branch"] for row in whole.table("metrics").to_pylist()} == set(branches)
    assert {row["branch"] for row in whole.table("costs").to_pylist()} == {
        "keep", "leave", "retrain#1", "retrain#2", "grad_diff", "npo",
    }  # fmt: skip


def test_branches_are_one_until_they_part(whole: RunDirectory) -> None:
    """Rounds up to the request are shared by all but retrain; afterwards everybody goes alone."""

    def knows(branch: str, round_: int) -> list[float]:
        found = rows(whole, "metrics", branch=branch, round=round_, metric="fact_probability")
        return [row["value"] for row in found]

    for round_ in range(4):
        assert knows("keep", round_) == knows("leave", round_) == knows("npo", round_)
    assert len({tuple(knows(branch, 7)) for branch in ("keep", "leave", "retrain", "grad_diff", "npo")}) == 5


def test_costs_are_counted(whole: RunDirectory) -> None:
    costs = rows(whole, "costs", branch="npo")
    assert [row["round"] for row in costs] == list(range(1, 8))
    assert [row["kind"] for row in costs] == ["train"] * 3 + ["unlearn"] * 4
    assert [row["request"] for row in costs] == [0, 0, 0, 1, 1, 2, 2]
    assert all(row["client_steps"] >= row["clients"] > 0 for row in costs)
    assert all(row["bytes_down"] > 0 and row["bytes_up"] > 0 for row in costs)
    stored = [row["stored_bytes"] for row in costs]
    assert stored[3] == stored[5] > 0  # the reference that NPO compares with
    assert stored[:3] == [0, 0, 0]
    assert stored[4] == stored[6] == 0
    assert {row["stored_bytes"] for row in rows(whole, "costs", branch="grad_diff")} == {0}


def test_the_verdict_names_every_branch_and_request(whole: RunDirectory) -> None:
    verdict = whole.json("verdict")
    assert [(row["branch"], row["request"]) for row in verdict["rows"]] == [
        (branch, request) for request in (1, 2) for branch in ("keep", "leave", "retrain", "grad_diff", "npo")
    ]
    assert all(row["excess"] is not None for row in verdict["rows"])
    assert len(verdict["informative"]) == 2
    assert {row["metric"] for row in verdict["trust"]} >= {"fact_probability", "nll"}
    assert whole.json("life")["horizon"] == 7
    assert {entry["branch"] for entry in whole.json("ledger")["entries"]} == {
        "keep", "leave", "retrain", "grad_diff", "npo",
    }  # fmt: skip


def test_a_finished_run_is_left_as_it_is(whole: RunDirectory) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.path.rglob("*") if path.is_file()}
    finish(whole)
    assert {path: path.stat().st_mtime_ns for path in whole.path.rglob("*") if path.is_file()} == before


# -------------------------------------------------------------------------------- repeatability


def test_two_runs_are_byte_identical(whole: RunDirectory, tmp_path: Path) -> None:
    assert differences(whole, run(tmp_path, LIFE)) == []


def test_the_conclusion_can_be_drawn_again(whole: RunDirectory, tmp_path: Path) -> None:
    """A run that was killed while it wrote its tables."""
    copy = RunDirectory(tmp_path / "run")
    shutil.copytree(whole.path, copy.path)
    for name in ("verdict.json", "trajectories.parquet", "ledger.json"):
        copy.file(name).unlink()
    finish(copy)
    assert differences(whole, copy) == []


RUN = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from fedsim.app import runs
from fedsim.storage.progress import Quiet
from fedsim.storage.directory import RunDirectory
from fedsim.scenario.file import load_scenario
directory = RunDirectory(Path(sys.argv[2]))
runs.execute(runs.prepare(load_scenario(Path(sys.argv[1])), directory), directory, Quiet())
"""


def first_checkpoint(directory: RunDirectory) -> bool:
    return any(directory.path.glob("checkpoints/base/1/round-*/keep"))


def fourth_segment(directory: RunDirectory) -> bool:
    return sum(event["kind"] == "segment" for event in directory.events()) >= 4


@pytest.mark.parametrize("moment", [first_checkpoint, fourth_segment])
def test_a_run_that_was_killed_ends_with_the_same_numbers(
    whole: RunDirectory, tmp_path: Path, moment: Callable[[RunDirectory], bool]
) -> None:
    file, directory = write_scenario(tmp_path, LIFE), RunDirectory(tmp_path / "run")
    command = [sys.executable, "-c", RUN, str(file), str(directory.path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen(command, env=environment, stderr=errors, stdout=errors)
        deadline = time.monotonic() + 120
        while not moment(directory) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, (tmp_path / "errors").read_text()
    assert not directory.file("verdict.json").exists()
    finish(directory)
    assert differences(whole, directory) == []


@pytest.fixture(scope="module")
def whole_in_cohorts(tmp_path_factory) -> RunDirectory:
    return run(tmp_path_factory.mktemp("cohorts"), merged(LIFE, execution__cohort="auto"))


def break_in_round(monkeypatch: pytest.MonkeyPatch, round_: int) -> None:
    """Interrupt when the second client of a round looks at its order."""
    select = ClientRuntime.select
    seen: list[int] = []

    def breaking(self: ClientRuntime, client: int, order: WorkOrder) -> list[int]:
        if order.round == round_:
            seen.append(client)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return select(self, client, order)

    monkeypatch.setattr(ClientRuntime, "select", breaking)


@pytest.mark.parametrize("round_", [4, 7])
@pytest.mark.parametrize("cohort", [1, "auto"])
def test_a_run_that_broke_inside_a_round_ends_with_the_same_numbers(
    request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, round_: int, cohort: int | str
) -> None:
    whole = request.getfixturevalue("whole" if cohort == 1 else "whole_in_cohorts")
    with monkeypatch.context() as patched:
        break_in_round(patched, round_)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, merged(LIFE, execution__cohort=cohort))
    directory = RunDirectory(tmp_path / "run")
    finish(directory)
    assert differences(whole, directory) == []
    kept = {path.parent.name for path in directory.path.glob("checkpoints/base/1/*/*")}
    assert kept == {path.parent.name for path in whole.path.glob("checkpoints/base/1/*/*")}


COUNTED = {"membership_auc", "exact_memorisation", "extraction_strength", "forget_quality_p"}
"""Metrics that count which of two values is larger: rounding decides between neighbours, and moves them by
one pair of few. Which pair that is depends on the machine."""


def test_cohorts_change_results_by_rounding_only(whole: RunDirectory, whole_in_cohorts: RunDirectory) -> None:
    for table in ("metrics", "items"):
        ours, theirs = (one.table(table).to_pylist() for one in (whole, whole_in_cohorts))
        assert [{**row, "value": 0} for row in ours] == [{**row, "value": 0} for row in theirs]
        values = [np.array([row["value"] for row in one], dtype=float) for one in (ours, theirs)]
        counted = np.array([row["metric"] in COUNTED for row in ours])
        np.testing.assert_allclose(*(one[~counted] for one in values), rtol=2e-2, atol=2e-2)
        moved = np.abs(values[0][counted] - values[1][counted]) > 1e-9
        assert np.mean(moved) <= 0.02
        assert np.nanmean(np.abs(values[0] - values[1])) < 1e-3
    costs = [one.table("costs").to_pylist() for one in (whole, whole_in_cohorts)]
    assert costs[0] == costs[1]


# ------------------------------------------------------------------- branches as counterfactuals


@pytest.fixture(scope="module")
def never(tmp_path_factory) -> tuple[RunDirectory, TRAINED]:
    """The same life, up to the second request, that client 1 never joined."""
    timeline = [
        {"join": {"clients": [0, 2, 3]}},
        {"train": {"rounds": 2}},
        {"join": {"clients": 4}},
        {"train": {"rounds": 3}},
    ]
    with pytest.MonkeyPatch.context() as monkeypatch:
        trained = note_training(monkeypatch)
        scenario = merged(LIFE, timeline=timeline, compare=[])
        return run(tmp_path_factory.mktemp("never"), scenario), trained


def test_retrain_is_the_life_that_the_client_never_joined(whole: RunDirectory, never) -> None:
    assert adapter(whole, 5, "retrain-1") == adapter(never[0], 5, "keep")
    assert adapter(whole, 7, "leave") != adapter(never[0], 5, "keep")


def test_a_client_that_is_not_there_changes_nobodys_training(life, never) -> None:
    """Wherever two lives train a client from the same adapter, it comes to the same update."""
    common = life[1].keys() & never[1].keys()
    assert all(life[1][key] == never[1][key] for key in common)
    assert {key[1] for key in common} == {0, 1, 2, 3, 4, 5}  # 0 is the rehearsal
    assert len(life[1]) > len(common)


def test_the_order_of_comparison_changes_no_branch(whole: RunDirectory, tmp_path: Path) -> None:
    directory = run(tmp_path, merged(LIFE, compare=LIFE["compare"][::-1]))
    for table in ("metrics", "items", "trajectories", "costs"):

        def sort_key(row: dict) -> str:
            return json.dumps({k: v for k, v in row.items() if k != "value"}, sort_keys=True, default=str)

        ours, theirs = (sorted(one.table(table).to_pylist(), key=sort_key) for one in (whole, directory))
        assert repr(ours) == repr(theirs), table  # repr: NaN equals NaN
    assert adapter(directory, 7, "npo") == adapter(whole, 7, "npo")


def test_answers_are_generated_around_events(tmp_path: Path) -> None:
    probes = BRIEF["probes"] | {"generate": "events", "max_new_tokens": 2}
    directory = run(tmp_path, merged(BRIEF, probes=probes))
    for branch in ("keep", "leave", "retrain"):
        assert rows(directory, "metrics", branch=branch, round=2, metric="rouge_l_recall")
        (utility,) = rows(directory, "metrics", branch=branch, round=2, metric="model_utility")
        assert 0 <= utility["value"] <= 1
    assert all(row["utility"] is not None for row in directory.json("verdict")["rows"])


def test_another_seed_is_another_life(tmp_path: Path) -> None:
    directory = run(tmp_path, merged(BRIEF, seeds=[1, 2]))
    assert {row["seed"] for row in directory.table("metrics").to_pylist()} == {1, 2}
    assert adapter(directory, 2, "keep") != adapter(directory, 2, "keep", seed=2)
    assert len(directory.json("verdict")["rows"]) == 2 * 3


def test_a_sweep_runs_every_variant(tmp_path: Path) -> None:
    directory = run(tmp_path, merged(BRIEF, sweep={"federation.local.lr": [1e-3, 1e-2]}))
    names = [variant["name"] for variant in directory.json("life")["variants"]]
    assert names == ["lr=0.001", "lr=0.01"]
    assert {row["variant"] for row in directory.table("metrics").to_pylist()} == set(names)
    assert adapter(directory, 2, "keep", variant=names[0]) != adapter(directory, 2, "keep", variant=names[1])


# ------------------------------------------------------------------------------------- privacy

DELTA = 1e-3
PRIVATE = merged(
    BRIEF,
    privacy=[
        {"stage": "example_dp", "target_epsilon": 6.0, "delta": DELTA, "clip_norm": 1.0},
        {"stage": "clip", "norm": 1.0},
        {"stage": "secure_aggregation"},
    ],
    federation__weighting="uniform",
    compare=[{"method": "grad_diff", "rounds": 1}],
)


def test_a_private_run_reports_what_it_spent(tmp_path: Path) -> None:
    directory = run(tmp_path, PRIVATE)
    assert {"client_failed", "empty_round"}.isdisjoint(event["kind"] for event in directory.events())
    spent = rows(directory, "metrics", metric="epsilon", branch="keep", round=2)
    assert [row["subject"] for row in spent] == ["client:0", "client:1", "client:2"]
    assert all(0 < row["value"] <= 6.0 for row in spent)
    first = rows(directory, "metrics", metric="epsilon", branch="keep", round=1)
    assert all(a["value"] < b["value"] for a, b in zip(first, spent, strict=True))
    entries = {entry["branch"]: entry["releases"] for entry in directory.json("ledger")["entries"]}
    assert set(entries) == {"keep", "leave", "retrain", "grad_diff"}
    for branch, releases in entries.items():
        ledger = Ledger(Release(**{**r, "clients": tuple(r["clients"])}) for r in releases)
        for row in rows(directory, "metrics", metric="epsilon", branch=branch, round=2):
            client = row["subject"].removeprefix("client:")
            assert ledger.epsilon(client, unit="example", delta=DELTA) == row["value"]
    oracle = pld_privacy_accountant.PLDAccountant()
    for release in entries["keep"]:
        if release["clients"] == ["0"]:
            gaussian = dp_accounting.GaussianDpEvent(release["noise_multiplier"])
            step = dp_accounting.PoissonSampledDpEvent(release["sampling_rate"], gaussian)
            oracle.compose(step, release["steps"])
    assert spent[0]["value"] == pytest.approx(oracle.get_epsilon(DELTA), rel=0.02)
    charged = {
        branch: {name for r in releases for name in r["clients"]} for branch, releases in entries.items()
    }
    assert charged["retrain"] == {"0", "1", "2"}
    before = {
        (r["round_id"], r["noise_multiplier"], r["steps"]) for r in entries["keep"] if r["clients"] == ["1"]
    }
    about_1 = {
        (r["round_id"], r["noise_multiplier"], r["steps"])
        for r in entries["retrain"]
        if r["clients"] == ["1"]
    }
    assert about_1 == {release for release in before if release[0] == 1}, (
        "what was released before its request"
    )
    ids = sorted(r["round_id"] for r in entries["retrain"] if r["clients"] == ["0"])
    assert ids == [1, 1, 2], "round 1, released before the request; its replay; round 2"
    assert ["1"] in [release["clients"] for release in entries["grad_diff"] if release["round_id"] == 2]
    privacy = directory.json("privacy")
    assert {view["adversary"] for view in privacy["views"]} >= {"reader of the models", "curious server"}
    assert all(view["example"]["epsilon"] == 6.0 for view in privacy["views"])
    promises = {row["branch"]: row for row in privacy["forgetting"]}
    assert promises["keep"]["size"] > 1
    assert promises["keep"]["vacuous"]
    assert "vacuous" in promises["keep"]["sentence"]


CENTRAL = merged(
    PRIVATE,
    federation__participation={"cohort": 2, "rate": 0.8},
    privacy=[
        {"stage": "clip", "norm": 0.1, "quantile": 0.5},
        {"stage": "client_dp", "target_epsilon": 20.0, "delta": DELTA},
    ],
)
SHARED = merged(
    PRIVATE,
    privacy=[
        {"stage": "clip", "norm": 0.1},
        {"stage": "distributed_dp", "noise_multiplier": 1.0, "delta": DELTA, "min_survivors": 2},
        {"stage": "secure_aggregation"},
    ],
)


@pytest.mark.parametrize("private", [PRIVATE, CENTRAL, SHARED], ids=["example", "central", "shared"])
def test_a_private_run_is_resumed_with_its_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, private: dict
) -> None:
    """Budgets, norms and noise go on from the checkpoint: nobody gets a second budget."""
    scenario = merged(private, execution__checkpoint_every=1, compare=[])
    whole = run(tmp_path / "whole", scenario)
    with monkeypatch.context() as patched:
        break_in_round(patched, 2)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "broken", scenario)
    broken = RunDirectory(tmp_path / "broken" / "run")
    finish(broken)
    assert differences(whole, broken) == []


def test_a_finished_run_is_audited(tmp_path: Path) -> None:
    """The claims stand, and what a server reads off an update depends on what stands before it."""
    noisy = [{"stage": "clip", "norm": 1.0}, {"stage": "local_dp", "noise_multiplier": 1.0, "delta": DELTA}]
    scenario = merged(
        BRIEF,
        model__lora={"r": 16, "alpha": 16},
        federation__weighting="uniform",
        privacy=[
            {"stage": "clip", "norm": 1.0},
            {"stage": "client_dp", "noise_multiplier": 2.0, "delta": DELTA},
        ],
        audits=[
            {"audit": "canaries", "clients": 200},
            {"audit": "gradient_inversion", "clients": 0, "under": {"none": [], "noise": noisy}},
        ],
    )
    directory = run(tmp_path, scenario)
    audits = directory.json("audits")
    (game,) = audits["canaries"]
    assert (game["stage"], game["level"], game["broken"]) == ("client_dp", "client", False)
    assert game["audited_epsilon"] <= game["claimed_epsilon"]
    assert game["claimed_epsilon"] == pytest.approx(
        rows(directory, "metrics", metric="client_epsilon", branch="keep")[-1]["value"]
    )
    read = {row["pipeline"]: row["rouge_l"] for row in audits["gradient_inversion"]}
    assert read["none"] > 0.3, "after two rounds the adapter is nearly fresh, which gives away less"
    assert read["this run"] == pytest.approx(read["none"], abs=0.1), (
        "noise of the server's own hides nothing from it"
    )
    assert read["noise"] == 0.0


# ------------------------------------------------------------------------------ what can be chosen


STRATEGIES = ["fedprox", "fedavgm", "fedadagrad", "fedadam", "fedyogi", "fedmedian"]
ROBUST = [{"name": "fedtrimmedavg", "beta": 0.4}, {"name": "krum", "num_malicious_nodes": 0}]


@pytest.mark.parametrize("strategy", [*STRATEGIES, *ROBUST], ids=str)
def test_every_strategy_runs(tmp_path: Path, strategy: str | dict) -> None:
    directory = run(tmp_path, merged(BRIEF, federation__strategy=strategy))
    norms = rows(directory, "metrics", branch="keep", metric="update_norm")
    assert len(norms) == 2
    assert all(0 < row["value"] < np.inf for row in norms)


def test_all_parameters_can_be_trained(tmp_path: Path) -> None:
    directory = run(tmp_path, merged(BRIEF, model={"base": "tiny-authors", "lora": None}))
    (row,) = rows(directory, "metrics", branch="keep", metric="update_norm", round=2)
    assert row["value"] > 0
    assert len(adapter(directory, 2, "keep")) > 1_000_000


def test_only_factor_b_can_be_trained(tmp_path: Path) -> None:
    directory = run(tmp_path, merged(BRIEF, model__lora={"r": 2, "train": "B"}))
    (row,) = rows(directory, "metrics", branch="keep", metric="update_norm", round=2)
    assert row["value"] > 0


@pytest.mark.parametrize("lora", [{"init": "pissa", "train": "B"}, {"init": "corda"}])
def test_a_start_that_changes_the_base_is_resumed_with_it(tmp_path: Path, lora: dict, monkeypatch) -> None:
    """A checkpoint is for the base as published, and going on from it is as if nothing had happened."""
    scenario = merged(BRIEF, model__lora={"r": 2, "alpha": 4, **lora}, execution__checkpoint_every=1)
    directory = run(tmp_path / "once", scenario)
    resumed = broken_off(tmp_path / "twice", scenario, monkeypatch, 2)
    assert not differences(directory, resumed)
    assert adapter(directory, 2, "keep") == adapter(resumed, 2, "keep")
    (row,) = rows(directory, "metrics", branch="keep", metric="update_norm", round=2)
    assert row["value"] > 0


@pytest.mark.parametrize(("replacement", "sizes"), [("next", {2}), ("none", {1, 2})])
def test_cohorts_of_a_fixed_size(tmp_path: Path, replacement: str, sizes: set[int]) -> None:
    """Two of three clients a round; after one is gone its place stays empty, or not."""
    rule = {"cohort": 2, "replacement": replacement}
    timeline = [*BRIEF["timeline"], {"train": {"rounds": 3}}]
    directory = run(tmp_path, merged(BRIEF, federation__participation=rule, timeline=timeline))
    for branch in ("keep", "leave"):
        found = {row["value"] for row in rows(directory, "metrics", branch=branch, metric="cohort_size")}
        assert found == ({2} if branch == "keep" else sizes)


def test_a_method_that_diverges_does_not_end_the_run(tmp_path: Path) -> None:
    compare = [
        {"method": "grad_ascent", "rounds": 2, "lr": 1e12, "epochs": 5},
        {"method": "npo", "rounds": 1},
    ]
    timeline = [*BRIEF["timeline"], {"train": {"rounds": 2}}]
    directory = run(
        tmp_path, merged(BRIEF, compare=compare, timeline=timeline, federation__local__optimizer="sgd")
    )
    verdicts = {row["branch"]: row for row in directory.json("verdict")["rows"]}
    assert verdicts["npo"]["excess"] is not None
    kinds = {(e["kind"], e.get("branch")) for e in directory.events()}
    assert kinds & {("client_failed", "grad_ascent"), ("probe_failed", "grad_ascent")}
    json.dumps(directory.json("verdict"), allow_nan=False)


def test_an_adapter_that_cannot_be_measured_does_not_end_the_run(tmp_path: Path) -> None:
    """Finite updates so large that the model's outputs are not."""
    compare = [{"method": "grad_ascent", "rounds": 1, "lr": 1e12}]
    directory = run(
        tmp_path,
        merged(
            BRIEF,
            compare=compare,
            federation__local={"epochs": 1, "batch_size": 100, "lr": 1e-3, "optimizer": "sgd"},
        ),
    )
    assert ("probe_failed", "grad_ascent") in {(e["kind"], e.get("branch")) for e in directory.events()}
    verdicts = {row["branch"]: row for row in directory.json("verdict")["rows"]}
    assert verdicts["grad_ascent"]["excess"] is None
    assert verdicts["grad_ascent"]["finding"].endswith("fact probability was not measured at round 2")
    assert verdicts["keep"]["excess"] is not None


def test_a_directory_of_another_scenario_is_not_touched(whole: RunDirectory, tmp_path: Path) -> None:
    file = write_scenario(tmp_path, BRIEF)
    before = whole.file("scenario.yaml").read_bytes()
    with pytest.raises(ValueError, match="another scenario"):
        runs.prepare(load_scenario(file), whole)
    assert whole.file("scenario.yaml").read_bytes() == before


def test_a_run_tells_its_progress(tmp_path: Path) -> None:
    class Counting(Quiet):
        total = done = 0

        def start(self, total_rounds: int) -> None:
            self.total = total_rounds

        def round(self, branch: str, round_: int, clients: int) -> None:
            self.done += 1

    directory, progress = RunDirectory(tmp_path / "run"), Counting()
    simulation = runs.prepare(load_scenario(write_scenario(tmp_path, BRIEF)), directory)
    runs.execute(simulation, directory, progress)
    assert progress.done == progress.total > 0
