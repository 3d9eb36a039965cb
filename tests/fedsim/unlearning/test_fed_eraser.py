"""A method that looks back: rounds are stored while they happen, and walked again by those who were there."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fedsim.federation.history import StoredHistory, Stretch
from fedsim.federation.rounds import run_round
from fedsim.federation.state import Federation
from fedsim.federation.worst_cases import most_steps
from fedsim.life.branches import unroll
from fedsim.life.roster import Participation
from fedsim.life.schedule import answers
from fedsim.life.steps import UnlearningStep
from fedsim.places import ScenarioError
from fedsim.storage.directory import DamagedError, RunDirectory
from fedsim.unlearning.desk import Desk, Forgetful, Sent
from fedsim.unlearning.methods.fed_eraser import FedEraser
from fedsim.unlearning.request import Request
from tests.e2e.runs import FEW_PROBES, LIFE, adapter, differences, finish, merged, run
from tests.fedsim.life.lives import life_of, records_of
from tests.world import LOCAL, make_records, make_step, make_world, same

RECORDS = tuple(record.record_id for record in make_records(1, 5))
WHOLE = Request(number=1, client=1, round=2, scope="client", record_ids=RECORDS, trained=(1, 2))


class Shelf:
    """A history in memory."""

    def __init__(self, updates: dict[int, dict[int, Sent]]) -> None:
        self._updates = updates

    def adapter(self, round_: int):
        raise AssertionError("nobody asks for it")

    def updates(self, round_: int) -> dict[int, Sent]:
        return self._updates[round_]


def sent(values: list[float], weight: float = 1.0) -> Sent:
    return Sent(update={"a": np.float32(values)}, weight=weight)


def test_a_stored_update_is_turned_into_the_new_direction() -> None:
    """By hand: |(3, 4)| = 5 along (0, 2) is (0, 5); |(0, 6)| = 6 along (-3, 0) is (-6, 0); weights 1 : 3."""
    shelf = Shelf({1: {0: sent([3, 4], 1.0), 1: sent([9, 9], 50.0), 2: sent([0, 6], 3.0)}})
    desk = Desk(adapter={"a": np.float32([7, 7])}, kept={}, history=shelf)
    new = {0: sent([0, 2]), 2: sent([-3, 0]), 8: sent([1, 1])}
    moved = FedEraser(every=1).combined(WHOLE, 0, new, desk)["a"]
    assert moved == pytest.approx(np.float32([-4.5, 1.25]))
    assert moved.dtype == np.float32


def test_nobody_and_no_direction_move_nothing() -> None:
    shelf = Shelf({1: {0: sent([3, 4])}})
    desk = Desk(adapter={"a": np.float32([7, 7])}, kept={}, history=shelf)
    for new in ({}, {0: sent([0, 0])}):
        assert FedEraser(every=1).combined(WHOLE, 0, new, desk)["a"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("every", "since", "trained", "walked"),
    [
        (1, 1, (1, 2, 3), [1, 2, 3]),
        (2, 1, (1, 2, 3, 4), [1, 3]),
        (2, 4, (1, 2, 3, 4, 5), [3, 5]),
        (2, 4, (1, 2, 3, 4, 6, 7), [3, 7]),
        (5, 6, (1, 2, 3, 4, 5), [1]),
        (1, 1, (), []),
    ],
)
def test_the_stored_rounds_since_the_data_came_are_walked(every, since, trained, walked) -> None:
    request = Request(
        number=1, client=1, round=9, scope="client", record_ids=RECORDS, since=since, trained=trained
    )
    method = FedEraser(every=every)
    assert method.rounds_for(request) == len(walked)
    assert [method.helped_by(request, index) for index in range(len(walked))] == walked


def test_a_later_request_goes_back_as_far_as_the_first() -> None:
    """Rounds of unlearning are not walked; a request that waits begins when the first is answered."""
    life = life_of(
        [
            {"join": {"clients": "0-2"}},
            {"train": {"rounds": 2}},
            {"join": {"clients": 3}},
            {"train": {"rounds": 2}},
            {"forget": {"client": 1}},
            {"train": {"rounds": 1}},
            {"forget": {"client": 3}},
            {"train": {"rounds": 20}},
        ],
        records_of(4),
    )
    first, second = answers(life, FedEraser(every=1))
    assert (first.request.since, first.request.trained, first.first, first.last) == (1, (1, 2, 3, 4), 5, 8)
    assert (second.request.since, second.request.trained) == (1, (1, 2, 3, 4))
    assert (second.first, second.last) == (9, 12)
    assert life.request(2).since == 3


@pytest.fixture
def world(model):
    return make_world(model, methods=[FedEraser(every=1)], requests=[WHOLE], weighting="uniform", more=0)


def history(folder: Path) -> StoredHistory:
    return StoredHistory((Stretch(folder=folder, first=1, last=9),))


def unlearn(world, federation: Federation, index: int):
    step = make_step(index + 3, [0, 2], UnlearningStep(branch="fed_eraser", request=1, index=index))
    return run_round(federation, step, "fed_eraser", world.engine)


def test_the_adapter_is_rebuilt_from_before_the_client(world, start, tmp_path) -> None:
    """Recomputed from the files: each array moves by the mean of stored lengths along the new directions."""
    federation = world.federation()
    federation.adapter = {name: value.copy() for name, value in start.items()}
    federation.history = history(tmp_path / "stored")
    for round_ in (1, 2):
        assert run_round(federation, make_step(round_, [0, 1, 2]), "keep", world.engine).kind == "train"
    trained = {name: value.copy() for name, value in federation.adapter.items()}
    stored = federation.history.updates(1)
    assert sorted(stored) == [0, 1, 2]
    assert same(federation.history.adapter(1), start)

    assert unlearn(world, federation, 0).contributors == (0, 2)
    assert same(federation.adapter, trained)  # users have the old adapter until all is walked
    draft = federation.kept[1]["draft"]
    for name, value in draft.items():
        longest = np.mean([np.linalg.norm(stored[client].update[name]) for client in (0, 2)])
        assert 0 < np.linalg.norm(value - start[name]) <= longest * (1 + 1e-5)
    outcome = unlearn(world, federation, 1)
    assert outcome.kind == "unlearn"
    assert federation.kept == {}
    assert not same(federation.adapter, draft)
    assert not same(federation.adapter, trained)


def test_a_calibration_alone_with_one_client_has_the_stored_length(model, start, tmp_path) -> None:
    world = make_world(model, methods=[FedEraser(every=1, epochs=2)], requests=[WHOLE], more=0)
    federation = world.federation()
    federation.adapter = {name: value.copy() for name, value in start.items()}
    federation.history = history(tmp_path)
    for round_ in (1, 2):
        run_round(federation, make_step(round_, [0, 1]), "keep", world.engine)
    stored = federation.history.updates(1)[0].update
    step = make_step(3, [0], UnlearningStep(branch="fed_eraser", request=1, index=0))
    run_round(federation, step, "fed_eraser", world.engine)
    for name, value in federation.kept[1]["draft"].items():
        assert np.linalg.norm(value - start[name]) == pytest.approx(np.linalg.norm(stored[name]), rel=1e-4)


def test_a_stored_round_that_was_altered_is_named(world, start, tmp_path) -> None:
    federation = world.federation()
    federation.history = history(tmp_path)
    run_round(federation, make_step(1, [0, 1]), "keep", world.engine)
    file = tmp_path / "round-0001" / "updates.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(DamagedError, match=r"round-0001: updates.safetensors is not as it was written"):
        federation.history.updates(1)


def test_a_server_that_stores_nothing_says_so() -> None:
    for look in (Forgetful().adapter, Forgetful().updates):
        with pytest.raises(LookupError, match="round 3 is not stored"):
            look(3)


SCENARIO = merged(
    LIFE,
    compare=[{"method": "fed_eraser", "every": 2}, {"method": "npo", "rounds": 1}],
    federation__participation=0.9,
    timeline=[
        {"join": {"clients": "0-3"}},
        {"train": {"rounds": 3}},
        {"join": {"clients": 4}},
        {"train": {"rounds": 2}},
        {"forget": {"client": 1}},
        {"train": {"rounds": 4}},
        {"forget": {"client": 2, "fraction": 0.5}},
        {"train": {"rounds": 5}},
    ],
    probes=FEW_PROBES,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("eraser"), SCENARIO)


def test_storing_changes_no_branch(whole, tmp_path: Path) -> None:
    plain = run(tmp_path, merged(SCENARIO, compare=[{"method": "npo", "rounds": 1}]))
    columns = ["branch", "round", "subject", "metric", "value"]
    rows = [
        {tuple(row.values()) for row in one.table("metrics").select(columns).to_pylist()}
        for one in (whole, plain)
    ]
    assert rows[1] <= rows[0]
    costs = {(row["branch"], row["round"]): row for row in whole.table("costs").to_pylist()}
    assert costs["keep", 2]["stored_bytes"] == 0
    assert costs["fed_eraser", 2]["stored_bytes"] > 5 * 4 * 1000
    assert costs["fed_eraser", 3]["stored_bytes"] > costs["fed_eraser", 2]["stored_bytes"]


def test_a_life_that_was_killed_while_walking_ends_with_the_same_bytes(
    whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    real = StoredHistory.updates

    def dies(self: StoredHistory, round_: int) -> dict[int, Sent]:
        if round_ == 3:
            raise Killed
        return real(self, round_)

    monkeypatch.setattr(StoredHistory, "updates", dies)
    with pytest.raises(Killed):
        run(tmp_path, SCENARIO)
    monkeypatch.undo()
    directory = RunDirectory(tmp_path / "run")
    finish(directory)
    assert differences(whole, directory) == []
    assert adapter(directory, 14, "fed_eraser") == adapter(whole, 14, "fed_eraser")


NOISE = {"stage": "client_dp", "noise_multiplier": 1.0, "delta": 1e-3}


@pytest.mark.parametrize(
    ("on_the_sum", "why"),
    [
        ({"stage": "secure_aggregation"}, "needs .'individual_updates'., which secure_aggregation hides"),
        (NOISE, "combines updates one by one, but client_dp adds its noise to their sum"),
    ],
)
def test_what_hides_single_updates_forbids_it(tmp_path: Path, on_the_sum: dict, why: str) -> None:
    stages = [{"stage": "clip", "norm": 1.0}, on_the_sum]
    with pytest.raises(ScenarioError, match=rf"compare.0.: 'fed_eraser' {why}"):
        run(tmp_path, merged(SCENARIO, privacy=stages, federation__weighting="uniform"))


def test_a_strategy_that_does_not_average_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="fedadam by something else; use fedavg, fedprox, scaffold"):
        run(tmp_path, merged(SCENARIO, federation__strategy={"name": "fedadam"}))


def test_the_forgotten_do_not_help_with_what_they_sent_before() -> None:
    """Client 2 is back when its own request is answered, and client 1 when that of 2 is."""
    events = [
        {"join": {"clients": "0-4"}},
        {"train": {"rounds": 2}},
        {"forget": {"client": 1}},
        {"forget": {"client": 2}},
        {"train": {"rounds": 1}},
        {"rejoin": {"client": 2}},
        {"rejoin": {"client": 1}},
        {"train": {"rounds": 6}},
    ]
    life, method = life_of(events, records_of(5)), FedEraser(every=1)
    branches = unroll(life, records_of(5), Participation(seed=1, rule=1.0), [method])
    steps = next(branch.steps for branch in branches if branch.name == "fed_eraser")
    helping = [{p.client for p in step.cohort} for step in steps if step.unlearning is not None]
    assert helping == [{0, 3, 4}] * 4
    assert {p.client for p in steps[-1].cohort} == {0, 1, 2, 3, 4}


def test_a_walk_to_which_nobody_came_leaves_the_adapter(model, start, tmp_path) -> None:
    def breaks(job, result):
        if job.round > 2:
            raise RuntimeError("gone")
        return result

    faults = {0: breaks, 2: breaks}
    world = make_world(
        model, methods=[FedEraser(every=1)], requests=[WHOLE], weighting="uniform", faults=faults
    )
    federation = world.federation()
    federation.history = history(tmp_path)
    for round_ in (1, 2):
        run_round(federation, make_step(round_, [0, 1, 2]), "keep", world.engine)
    before = {name: value.copy() for name, value in federation.adapter.items()}
    assert [unlearn(world, federation, index).kind for index in (0, 1)] == ["empty", "empty"]
    assert same(federation.adapter, before)


def test_helpers_are_sized_for_the_passes_that_the_method_asks() -> None:
    """By hand: three rounds of two steps, then two walked rounds of five passes of two steps each."""
    events = [{"join": {"clients": "0-2"}}, {"train": {"rounds": 3}}, {"forget": {"client": 1}}]
    life = life_of([*events, {"train": {"rounds": 2}}], records_of(3, each=4))
    method = FedEraser(every=2, epochs=5)
    branches = unroll(life, records_of(3, each=4), Participation(seed=1, rule=1.0), [method])
    corpus = SimpleNamespace(clients=records_of(3, each=4))
    local = LOCAL.model_copy(update={"epochs": 1, "batch_size": 2})
    assert most_steps(branches, local, [method], life, corpus) == {0: 26, 1: 10, 2: 26}
