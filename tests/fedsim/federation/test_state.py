"""The state that lives through time, under each of Flower's strategies."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvgM
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsim.federation.adaptive import FedAdam
from fedsim.federation.grid import InProcessGrid
from fedsim.federation.moving import move
from fedsim.federation.orders import Assignment, PlannedWeights
from fedsim.federation.records import from_record, to_record, untouched_global_random
from fedsim.federation.state import Federation
from fedsim.federation.strategies.registry import STRATEGIES, strategy_of
from fedsim.model.vectors import from_vector, to_vector
from fedsim.unlearning.protocol import ServerState
from privacy import Contribution, Release
from tests.world import same

NAMES = sorted(STRATEGIES)
SHAPES = {"a": (3,), "b": (2, 2)}
SIZE = 7


@pytest.fixture(scope="module")
def grid() -> InProcessGrid:
    made = InProcessGrid(ClientApp())
    made.roster = (0, 1, 2)
    return made


def make_federation(name: str, seed: int = 0) -> Federation:
    draws = np.random.default_rng(seed)
    adapter = {key: draws.normal(size=shape).astype(np.float32) for key, shape in SHAPES.items()}
    return Federation(algorithm=strategy_of(name), adapter=adapter)


def step(
    federation: Federation,
    grid: InProcessGrid,
    update: np.ndarray | float = 0.0,
    server_state: ServerState = "keep",
) -> None:
    """One round in which the clients' combined update is ``update``; 0 when they are idle."""
    federation.round += 1
    with untouched_global_random():
        federation.strategy.configure_train(
            federation.round, to_record(federation.adapter), ConfigRecord(), grid
        )
    size = sum(value.size for value in federation.adapter.values())
    vector = np.broadcast_to(np.float32(update), size).astype(np.float32)
    one_by_one = federation.algorithm.one_by_one and server_state == "keep"
    sent = Contribution(update=vector.astype(np.float64), weight=1.0)
    updates = {str(client): sent for client in range(7)} if one_by_one else {}
    planned = PlannedWeights(by_role={"target": 1.0}, normalise=False)
    weights = None if server_state == "keep" else planned
    assignment = Assignment(orders={}, server_state=server_state, weights=weights)
    move(federation, from_vector(vector, federation.adapter), assignment, SimpleNamespace(grid=grid), updates)


def live(federation: Federation, grid: InProcessGrid, rounds: int, seed: int = 1) -> None:
    draws = np.random.default_rng(seed)
    for _ in range(rounds):
        step(federation, grid, draws.normal(size=SIZE))


def flat(federation: Federation) -> np.ndarray:
    return to_vector(federation.adapter)


def edited(federation: Federation) -> dict:
    return {name: value - 5 for name, value in federation.adapter.items()}


def test_one_reply_through_fedavg_is_adapter_plus_update(grid) -> None:
    federation = make_federation("fedavg")
    before, update = flat(federation), np.arange(SIZE, dtype=np.float32)
    step(federation, grid, update)
    assert flat(federation).tobytes() == (before + update).tobytes()
    assert federation.version == 1


@pytest.mark.parametrize("name", NAMES)
def test_idle_clients_move_nothing(name: str, grid) -> None:
    federation = make_federation(name)
    before = federation.adapter
    for _ in range(3):
        step(federation, grid)
    assert same(federation.adapter, before)


@pytest.mark.parametrize("name", NAMES)
def test_after_an_edit_with_reset_nothing_moves(name: str, grid) -> None:
    federation = make_federation(name)
    live(federation, grid, 3)
    federation.replace(edited(federation), server_state="reset")
    before = {key: value.copy() for key, value in federation.adapter.items()}
    for _ in range(3):
        step(federation, grid)
    assert same(federation.adapter, before)


@pytest.mark.parametrize("name", NAMES)
def test_after_an_edit_with_rebase_things_move_as_without_it(name: str, grid) -> None:
    federation, untouched = make_federation(name), make_federation(name)
    for one in (federation, untouched):
        live(one, grid, 3)
    federation.replace(edited(federation), server_state="rebase")
    starts = flat(federation), flat(untouched)
    for update in (0.0, 0.25, 0.0):
        step(federation, grid, update)
        step(untouched, grid, update)
        assert flat(federation) - starts[0] == pytest.approx(flat(untouched) - starts[1], abs=2e-5)
    moves = name in ("fedavgm", "fedadam", "fedyogi")
    first = make_federation(name)
    live(first, grid, 3)
    before = flat(first)
    step(first, grid)
    assert np.any(flat(first) != before) == moves  # there was momentum to keep


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("server_state", ["rebase", "reset"])
def test_an_unlearning_round_is_not_replayed(name: str, server_state: ServerState, grid) -> None:
    """The update is applied as it is, and idle clients find nothing moving afterwards."""
    federation = make_federation(name)
    if server_state == "reset":  # what went before is forgotten too
        live(federation, grid, 3)
    start = flat(federation)
    step(federation, grid, 0.5, server_state)
    after = flat(federation)
    assert after == pytest.approx(start + 0.5, abs=1e-6)
    for _ in range(3):
        step(federation, grid)
    assert flat(federation).tobytes() == after.tobytes()


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi"])
def test_an_unlearning_round_that_keeps_the_state_goes_on(name: str, grid) -> None:
    federation = make_federation(name)
    step(federation, grid, 0.5, "keep")
    after = flat(federation)
    step(federation, grid)
    assert np.abs(flat(federation) - after).min() > 1e-4


def test_fedavgm_replays_an_edit_that_keeps_its_state(grid) -> None:
    """By hand, momentum 0.9: the edit of -5 becomes velocity, which goes on: -5, -9.5, -13.55."""
    federation = Federation(
        algorithm=strategy_of("fedavgm", server_momentum=0.9),
        adapter={"a": np.zeros(1, np.float32)},
    )
    step(federation, grid)
    federation.replace({"a": np.array([-5.0])}, server_state="keep")
    seen = []
    for _ in range(3):
        step(federation, grid)
        seen.append(float(federation.adapter["a"][0]))
    assert seen == pytest.approx([-5.0, -9.5, -13.55])


@pytest.mark.parametrize("state", ["keep", "reset", "rebase"])
def test_an_edit_is_a_version_and_a_copy(state: str, grid) -> None:
    federation = make_federation("fedavgm")
    live(federation, grid, 2)
    arrays = {name: value.astype(np.float64) for name, value in federation.adapter.items()}
    federation.replace(arrays, server_state=state)
    assert federation.version == 3
    arrays["a"][...] = 99
    assert federation.adapter["a"].max() < 99
    assert {value.dtype for value in federation.adapter.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", NAMES)
def test_a_fork_goes_its_own_way(name: str, grid) -> None:
    federation, twin = make_federation(name), make_federation(name)
    for one in (federation, twin):
        live(one, grid, 2)
    fork = federation.fork()
    release = Release(round_id=1, branch="keep", clients=("1",), unit="example", noise_multiplier=1.0)
    fork.ledger.append(release)
    fork.keep_reference(1)
    live(fork, grid, 3, seed=2)
    assert federation.ledger.releases() == ()
    assert federation.kept == {}
    live(federation, grid, 2, seed=3)
    live(twin, grid, 2, seed=3)
    assert same(federation.adapter, twin.adapter)
    assert not same(fork.adapter, federation.adapter)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds=st.integers(0, 4), seed=st.integers(0, 2**32), edit=st.sampled_from(["no", "reset", "rebase"]))
def test_what_is_saved_comes_back_bit_by_bit(
    name: str, grid, tmp_path_factory, rounds: int, seed: int, edit: str
) -> None:
    federation = make_federation(name, seed)
    live(federation, grid, rounds, seed)
    if edit != "no":
        federation.replace(edited(federation), server_state=edit)
    federation.keep_reference(2)
    federation.ledger.append(
        Release(round_id=1, branch="keep", clients=("1",), unit="example", noise_multiplier=1.0)
    )
    directory = tmp_path_factory.mktemp("state")
    federation.save(directory)
    again = Federation.load(directory, federation.algorithm, federation.adapter)
    states = federation.server_memory(), again.server_memory()
    assert states[0].keys() == states[1].keys()
    for group, arrays in states[0].items():
        assert list(arrays) == list(states[1][group])
        assert same(arrays, states[1][group])
    assert same(again.kept[2]["reference"], federation.kept[2]["reference"])
    assert (again.round, again.version) == (federation.round, federation.version)
    assert again.ledger.to_json() == federation.ledger.to_json()
    for one in (federation, again):
        live(one, grid, 2, seed=5)
    assert same(federation.adapter, again.adapter)


def test_velocity_is_imported_in_the_order_of_the_adapter(grid) -> None:
    """FedAvgM holds it by position."""
    federation = make_federation("fedavgm")
    live(federation, grid, 2)
    strategy = federation.algorithm.make()
    assert isinstance(strategy, FedAvgM)
    federation.algorithm.restore(strategy, federation.server_memory())
    assert strategy.current_arrays is not None
    assert list(strategy.current_arrays) == sorted(SHAPES)
    assert strategy.momentum_vector is not None
    assert [v.shape for v in strategy.momentum_vector] == [SHAPES[name] for name in sorted(SHAPES)]


def test_adaptive_strategies_give_float64_and_the_adapter_is_float32(grid) -> None:
    federation = make_federation("fedadam")
    strategy = federation.strategy
    assert isinstance(strategy, FedAdam)
    strategy.configure_train(1, to_record(federation.adapter), ConfigRecord(), grid)
    moved = {name: value + np.float32(1) for name, value in federation.adapter.items()}
    content = RecordDict({"arrays": to_record(moved), "metrics": MetricRecord({"weight": 1.0})})
    reply = grid.reply_from_server(content, "1")
    arrays, _ = strategy.aggregate_train(1, [reply])
    assert arrays is not None
    assert arrays["a"].numpy().dtype == np.float64
    assert from_record(arrays)["a"].dtype == np.float32
    live(federation, grid, 2)
    assert {value.dtype for value in federation.adapter.values()} == {np.dtype(np.float32)}


def test_arrays_survive_a_record() -> None:
    arrays = {"a": np.array([np.nan, -0.0, np.inf], np.float32), "b": np.zeros((0, 2), np.float32)}
    assert same(from_record(to_record(arrays)), arrays)


def test_flower_draws_from_the_global_generator_and_it_is_put_back(grid) -> None:
    strategy, arrays = strategy_of().make(), to_record({"a": np.zeros(1, np.float32)})
    random.seed(1)
    before = random.getstate()
    with untouched_global_random():
        strategy.configure_train(1, arrays, ConfigRecord(), grid)
    assert random.getstate() == before
    strategy.configure_train(1, arrays, ConfigRecord(), grid)
    assert random.getstate() != before


def test_every_node_of_the_roster_is_asked(grid) -> None:
    messages = list(
        strategy_of()
        .make()
        .configure_train(1, to_record({"a": np.zeros(1, np.float32)}), ConfigRecord(), grid)
    )
    assert sorted(m.metadata.dst_node_id for m in messages) == [1000, 1001, 1002]


def test_stored_bytes_are_those_of_server_state_and_references(grid) -> None:
    federation = make_federation("fedavg")
    live(federation, grid, 2)
    assert federation.stored_bytes() == 0
    federation.keep_reference(1)
    assert federation.stored_bytes() == SIZE * 4
    with_momentum = make_federation("fedavgm")
    live(with_momentum, grid, 2)
    assert with_momentum.stored_bytes() == 2 * SIZE * 4


def test_the_first_reference_of_a_request_stays(grid) -> None:
    federation = make_federation("fedavg")
    federation.keep_reference(1)
    first = {name: value.copy() for name, value in federation.adapter.items()}
    live(federation, grid, 2)
    federation.keep_reference(1)
    assert same(federation.kept[1]["reference"], first)
