"""A method that trains otherwise: parts live lives of their own; its own retraining is its reference."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fedsim
from fedsim.app import runs
from fedsim.assembly.build import make_context
from fedsim.life.branches import lines_of, unroll
from fedsim.life.roster import Participation
from fedsim.living.runner import LifeRunner
from fedsim.model.vectors import to_vector
from fedsim.places import ScenarioError
from fedsim.scenario.file import load_scenario
from fedsim.storage.directory import RunDirectory
from fedsim.storage.progress import Quiet
from fedsim.unlearning.methods.sisa import Sisa
from tests.e2e.runs import LIFE, adapter, differences, finish, merged, run, write_scenario
from tests.fedsim.life.lives import life_of, records_of

SCENARIO = merged(LIFE, compare=[{"method": "sisa", "shards": 2}, {"method": "npo", "rounds": 1}])
END = 7


@given(st.sets(st.integers(0, 500), min_size=2, max_size=40), st.integers(2, 6), st.integers(0, 3))
def test_every_client_is_in_one_shard_of_about_the_same_size(clients, shards, deal) -> None:
    parts = Sisa(shards=shards, deal=deal).parts(sorted(clients))
    assert sorted(client for part in parts for client in part) == sorted(clients)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parts == Sisa(shards=shards, deal=deal).parts(sorted(clients))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> RunDirectory:
    return run(tmp_path_factory.mktemp("sisa"), SCENARIO)


@pytest.fixture(scope="module")
def shards() -> tuple[frozenset[int], ...]:
    return Sisa(shards=2).parts(range(5))


def shard_of(shards, client: int) -> int:
    return next(number for number, clients in enumerate(shards) if client in clients)


def test_the_shard_of_the_forgotten_is_the_life_it_never_joined(whole, shards, tmp_path: Path) -> None:
    number = shard_of(shards, 1)
    timeline = [
        {"join": {"clients": "0-3"}},
        {"leave": {"client": 1}},
        {"train": {"rounds": 2}},
        {"join": {"clients": 4}},
        {"train": {"rounds": 3}},
    ]
    never = run(tmp_path, merged(SCENARIO, timeline=timeline, compare=[SCENARIO["compare"][0]]))
    part = f"sisa~{number}~"
    assert adapter(whole, 5, f"{part}retrain-1") == adapter(never, 5, f"{part}keep")
    assert adapter(whole, 5, f"{part}retrain-1") != adapter(whole, 7, f"{part}keep")


def test_only_the_shard_that_held_the_data_is_trained_again(whole) -> None:
    events = [{"join": {"clients": "0-4"}}, {"train": {"rounds": 3}}, {"forget": {"client": 1}}]
    life = life_of([*events, {"train": {"rounds": 2}}], records_of(5))
    method = Sisa(shards=2)
    participation = Participation(seed=1, rule=1.0)
    branches = {b.name: b.steps for b in unroll(life, records_of(5), participation, [method])}
    for number, clients in enumerate(method.parts(range(5))):
        keep, leave, gone = (branches[f"sisa/{number}/{name}"] for name in ("keep", "leave", "retrain#1"))
        assert {p.client for step in keep for p in step.cohort} == set(clients)
        assert (keep == leave == gone) == (1 not in clients)
    steps = {(row["branch"], row["request"]): row["client_steps"] for row in whole.json("verdict")["rows"]}
    assert 0 < steps["sisa", 1] < steps["retrain", 1]


def test_it_is_measured_against_its_own_retraining(whole) -> None:
    series = {
        (row["branch"], row["round"]): row["value"]
        for row in whole.table("metrics").to_pylist()
        if (row["subject"], row["metric"]) == ("forget:1", "fact_probability")
    }
    rows = [
        row
        for row in whole.table("trajectories").to_pylist()
        if (row["branch"], row["request"], row["metric"]) == ("sisa", 1, "fact_probability")
    ]
    assert [row["round"] for row in rows] == [3, 4, 5, 6, 7]
    for row in rows:
        assert row["excess"] == 0
        effect = series["sisa:leave", row["round"]] - series["sisa", row["round"]]
        assert row["method_effect"] == pytest.approx(effect)
    assert series["sisa", 2] == series["sisa:keep", 2] != series["keep", 2]
    assert series["sisa", 7] != series["retrain", 7]  # or the excess above would be 0 against that, too
    assert series["sisa", 3] != series["sisa:keep", 3]
    own = [row for row in whole.json("verdict")["rows"] if row["branch"] == "sisa"]
    assert all("its own reference" in row["finding"] for row in own)
    others = [row for row in whole.json("verdict")["rows"] if row["branch"] != "sisa"]
    assert {row["reference"] for row in others} == {"retrain"}


def test_what_is_measured_is_the_mean_of_the_shards(whole) -> None:
    """Recomputed with the models of the parts, asked one after the other."""
    opened = fedsim.open(whole.path)
    parts = [opened.predictor(f"sisa/{number}/retrain#2")[0] for number in range(2)]
    together, tokenizer = opened.predictor("sisa")
    ids = torch.tensor([tokenizer("Who wrote it?")["input_ids"]])
    ones = torch.ones_like(ids)
    mean = sum(part.logits(ids, ones, ones).double().softmax(-1) for part in parts) / 2
    assert together.logits(ids, ones, ones).exp().numpy() == pytest.approx(mean.numpy(), abs=1e-5)


def test_a_run_that_was_killed_ends_with_the_same_bytes(whole, tmp_path: Path, monkeypatch) -> None:
    class Killed(BaseException):
        pass

    real = LifeRunner._probe_ensembles

    def dies(self, lanes, round_: int) -> None:
        if round_ == 5:
            raise Killed
        real(self, lanes, round_)

    monkeypatch.setattr(LifeRunner, "_probe_ensembles", dies)
    directory = RunDirectory(tmp_path / "run")
    simulation = runs.prepare(load_scenario(write_scenario(tmp_path, SCENARIO)), directory)
    with pytest.raises(Killed):
        runs.execute(simulation, directory, Quiet())
    monkeypatch.undo()
    finish(directory)
    assert differences(whole, directory) == []


def test_it_changes_no_other_branch(whole, tmp_path: Path) -> None:
    plain = run(tmp_path, merged(SCENARIO, compare=SCENARIO["compare"][1:]))
    rows = [
        {tuple(row.items()) for row in one.table("costs").to_pylist() if "sisa" not in row["branch"]}
        for one in (whole, plain)
    ]
    assert rows[0] == rows[1]
    assert adapter(whole, END, "npo") == adapter(plain, END, "npo")


def test_every_release_of_every_shard_is_charged(tmp_path: Path) -> None:
    """By hand from the cost table: rounds until a request, then those that are replayed without its data."""
    stages = [{"stage": "clip", "norm": 1.0}, {"stage": "local_dp", "noise_multiplier": 1.0, "delta": 1e-3}]
    directory = run(tmp_path, merged(SCENARIO, privacy=stages, federation__weighting="uniform"))
    (entry,) = [one for one in directory.json("ledger")["entries"] if one["branch"] == "sisa"]
    charged = Counter(release["round_id"] for release in entry["releases"])
    trained = {(row["branch"], row["round"]): row["clients"] for row in directory.table("costs").to_pylist()}
    checked = runs.reopen(directory)
    lives = {one.name: one.steps for one in make_context(checked, checked.loaded.variants[0], 1).branches}
    expected: Counter[int] = Counter()
    for number in range(2):
        keep, first, second = (f"sisa/{number}/{name}" for name in ("keep", "retrain#1", "retrain#2"))
        expected.update({round_: trained[keep, round_] for round_ in range(1, 4)})
        for before, after, until, asked in ((keep, first, 5, 3), (first, second, 7, 5)):
            parted = [r for r in range(asked) if lives[before][r] != lives[after][r]]
            start = min(parted, default=asked) + 1
            expected.update({round_: trained[after, round_] for round_ in range(start, until + 1)})
    assert charged == +expected
    assert charged[1] > sum(trained[f"sisa/{number}/keep", 1] for number in range(2))  # round 1 was replayed


def test_more_shards_than_clients_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ScenarioError, match=r"compare.0.: sisa deals 5 clients to 6 parts.* use 5 parts at most"
    ):
        run(tmp_path, merged(SCENARIO, compare=[{"method": "sisa", "shards": 6}]))


def test_shards_are_dealt_among_those_who_ever_join() -> None:
    life = life_of([{"join": {"clients": [0, 4, 8]}}, {"train": {"rounds": 2}}], records_of(9))
    dealt = lines_of(Sisa(shards=3), life)
    assert sorted(client for clients in dealt.values() for client in clients) == [0, 4, 8]
    assert all(len(clients) == 1 for clients in dealt.values())


def test_a_shard_that_has_not_trained_has_no_say(tmp_path: Path) -> None:
    """One client a shard; once it is forgotten, the ensemble is the other shard alone."""
    timeline = [{"join": {"clients": [0, 1]}}, {"train": {"rounds": 2}}, {"forget": {"client": 1}}]
    lived = merged(
        SCENARIO,
        timeline=[*timeline, {"train": {"rounds": 1}}],
        compare=SCENARIO["compare"][:1],
        federation__participation=1.0,
    )
    directory = run(tmp_path, lived)
    opened = fedsim.open(directory.path)
    number = next(n for n, clients in enumerate(Sisa(shards=2).parts([0, 1])) if 0 in clients)
    together, tokenizer = opened.predictor("sisa")
    alone, _ = opened.predictor(f"sisa/{number}/retrain#1")
    ids = torch.tensor([tokenizer("Who wrote it?")["input_ids"]])
    ones = torch.ones_like(ids)
    expected = alone.logits(ids, ones, ones).softmax(-1)
    assert together.logits(ids, ones, ones).exp().numpy() == pytest.approx(expected.numpy(), abs=1e-5)
    with pytest.raises(ValueError, match="'sisa' is an ensemble and has no adapter of its own, but sisa/0/"):
        opened.adapter("sisa")


NOISE = [{"stage": "clip", "norm": 0.1}, {"stage": "client_dp", "noise_multiplier": 1.0, "delta": 1e-3}]


def test_shards_have_noise_of_their_own(tmp_path: Path) -> None:
    """Two shards that learn nothing move by their noise; were it the same, their difference would be bare."""
    local = {"lr": 1e-12, "epochs": 1, "batch_size": 9}
    directory = run(
        tmp_path,
        merged(SCENARIO, federation__local=local, federation__weighting="uniform", privacy=NOISE),
    )
    opened = fedsim.open(directory.path)
    first, second = (to_vector(opened.adapter(f"sisa/{number}/keep")) for number in range(2))
    common = to_vector(opened.adapter("keep"))
    moved = np.linalg.norm(first - second)
    assert moved > 0.5 * np.linalg.norm(first - common) > 0


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"privacy": [{"stage": "clip", "norm": 1.0}, {"stage": "secure_aggregation", "min_cohort": 4}]},
            "a masked round needs min_cohort=4; use fewer parts",
        ),
        (
            {"federation__strategy": {"name": "krum", "num_malicious_nodes": 1}},
            "krum with .* needs at least 5 updates; .*use fewer parts",
        ),
    ],
)
def test_shards_too_small_to_train_are_refused(tmp_path: Path, changes: dict, why: str) -> None:
    with pytest.raises(ScenarioError, match=rf"compare.0.: sisa has a part of \d clients.*{why}"):
        run(tmp_path, merged(SCENARIO, federation__participation=1.0, **changes))
