"""An algorithm with state at both ends and two vectors on the wire: SCAFFOLD against its own equations."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsim.federation.beside import put, taken
from fedsim.federation.grid import OWN, SHARED
from fedsim.federation.rounds import run_round
from fedsim.federation.state import Federation
from fedsim.federation.strategies.registry import strategy_of
from fedsim.life.steps import UnlearningStep
from fedsim.model.vectors import from_vector, to_vector
from fedsim.places import ScenarioError
from fedsim.training.config import ScheduleConfig
from fedsim.training.jobs import TrainJob
from fedsim.training.objectives import MeanNll
from fedsim.training.sequential import SequentialExecutor
from fedsim.unlearning.methods.npo import Npo
from fedsim.unlearning.request import Request
from tests.e2e.runs import LIFE, broken_off, differences, merged, run
from tests.world import LOCAL, born, encode, make_records, make_step, make_world, same

CLIENTS = 4
ONE_STEP = LOCAL.model_copy(update={"epochs": 1, "batch_size": 99})
LR = LOCAL.lr


def scaffold_world(model, **more):
    return make_world(
        model, strategy=strategy_of("scaffold"), weighting="uniform", clients=CLIENTS, more=0, **more
    )


def gradient_step(model, adapter, client: int, round_: int, epoch_batches) -> np.ndarray:
    """One plain step of a client from an adapter on named records: -eta g."""
    records = [make_records(client, 4)[position] for position in epoch_batches]
    job = TrainJob(
        client=client,
        round=round_,
        seed=7,
        adapter=adapter,
        pairs=encode(model, records),
        record_ids=tuple(record.record_id for record in records),
        local=ONE_STEP,
        objective=MeanNll(),
    )
    (result,) = SequentialExecutor(model=model).train_clients([job])
    return result.update


def test_one_step_of_all_is_fedavg_and_controls_are_gradients(model, start) -> None:
    """By hand: with K = 1, x moves by -eta mean(g_i), c_i = g_i(x), and c = mean(g_i)."""
    world = scaffold_world(model, local=ONE_STEP)
    federation = born(world, start)
    steps = [gradient_step(model, start, client, 1, range(4)) for client in range(CLIENTS)]
    run_round(federation, make_step(1, range(CLIENTS)), "keep", world.engine)
    assert to_vector(federation.adapter) - to_vector(start) == pytest.approx(np.mean(steps, axis=0), abs=1e-6)
    for client in range(CLIENTS):
        assert federation.remembered[client]["control"] == pytest.approx(-steps[client] / LR, abs=1e-3)
    assert federation.shared["control"] == pytest.approx(-np.mean(steps, axis=0) / LR, abs=1e-3)


def test_controls_are_gradients_at_rates_that_fall_too(model, start) -> None:
    """Gradients count by their rates; those of two short steps on the same records hardly differ."""
    schedule = ScheduleConfig(shape="linear", over="steps")
    controls = []
    for local in (ONE_STEP, ONE_STEP.model_copy(update={"epochs": 2, "schedule": schedule, "lr": 1e-5})):
        federation = born(scaffold_world(model, local=local), start)
        run_round(federation, make_step(1, (0,)), "keep", scaffold_world(model, local=local).engine)
        controls.append(federation.remembered[0]["control"])
    assert np.linalg.norm(controls[1] - controls[0]) < 0.05 * np.linalg.norm(controls[0])


def test_a_second_round_follows_the_equations(model, start) -> None:
    """Two steps a client, recomputed one by one: y <- y - eta (g - c_i + c), then option II."""
    local = LOCAL.model_copy(update={"epochs": 2, "batch_size": 99})
    world = scaffold_world(model, local=local)
    federation = born(world, start)
    run_round(federation, make_step(1, [0, 1, 2]), "keep", world.engine)
    before, common = federation.adapter, federation.shared["control"]
    own = {client: federation.remembered[client]["control"] for client in (0, 1)}
    run_round(federation, make_step(2, [0, 1, 3]), "keep", world.engine)
    moved, changes = [], []
    for client in (0, 1, 3):
        control = own.get(client, np.zeros_like(common))
        here = to_vector(before)
        for _ in range(2):
            plain = gradient_step(model, from_vector(here, before), client, 2, range(4))
            here = here + plain - np.float32(LR) * (common - control)
        update = here - to_vector(before)
        moved.append(update)
        changes.append(-common - update / np.float32(2 * LR))
        expected = control + changes[-1]
        assert federation.remembered[client]["control"] == pytest.approx(expected, abs=2e-3)
    shift = to_vector(federation.adapter) - to_vector(before)
    assert shift == pytest.approx(np.mean(moved, axis=0), abs=1e-5)
    # Three of the three clients that this step says are there took part: the whole mean change counts.
    assert federation.shared["control"] == pytest.approx(common + np.mean(changes, axis=0), abs=2e-3)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cohorts=st.lists(
        st.sets(st.integers(0, CLIENTS - 1), min_size=1, max_size=CLIENTS), min_size=1, max_size=4
    )
)
def test_the_servers_control_is_the_mean_of_all_clients(model, start, cohorts) -> None:
    """Whoever takes part when: c is the sum of c_i by N, those that never took part at zero."""
    world = scaffold_world(model)
    federation = born(world, start)
    for round_, cohort in enumerate(cohorts, start=1):
        step = replace(make_step(round_, sorted(cohort)), nominal_size=CLIENTS)
        run_round(federation, step, "keep", world.engine)
    total = sum(own["control"].astype(np.float64) for own in federation.remembered.values())
    assert federation.shared["control"] == pytest.approx(total / CLIENTS, abs=1e-3)


def test_who_joins_counts_with_zero_and_who_was_never_there_does_not(model, start) -> None:
    """Rosters of 2, then 4 clients: c is the mean over those who have been there so far."""
    world = scaffold_world(model)
    rosters = ((0, 1), (0, 1), (0, 1, 2, 3), (0, 3))
    engine = replace(world.engine, planner=replace(world.engine.planner, rosters={"retrain#1": rosters}))
    federation = born(world, start)
    for round_, cohort in enumerate(([0], [0, 1], [2, 3], [3]), start=1):
        step = replace(make_step(round_, cohort), nominal_size=9)
        run_round(federation, step, "retrain#1", engine)
        total = sum(own["control"].astype(np.float64) for own in federation.remembered.values())
        there = 2 if round_ < 3 else 4
        assert federation.shared["control"] == pytest.approx(total / there, abs=1e-3)


def test_traffic_is_counted_and_memory_is_not(model, start) -> None:
    """Two clients get and send one vector more each; what is carried for them costs nothing."""
    world, plain = scaffold_world(model), make_world(model, weighting="uniform", clients=CLIENTS, more=0)
    federation = born(world, start)
    first, second = (run_round(federation, make_step(n, [0, 1]), "keep", world.engine) for n in (1, 2))
    alone = run_round(born(plain, start), make_step(1, [0, 1]), "keep", plain.engine)
    size = to_vector(start).nbytes
    assert second.taken.bytes_down == first.taken.bytes_down
    assert second.taken.bytes_up == first.taken.bytes_up
    assert first.taken.bytes_up - alone.taken.bytes_up == pytest.approx(2 * size, abs=512)
    assert first.taken.bytes_down - alone.taken.bytes_down == pytest.approx(2 * size, abs=512)


def test_vectors_that_nobody_asked_for_are_refused() -> None:
    content = RecordDict()
    put(content, OWN, {"control": np.float32([1, 2, 3])})
    assert taken(content, OWN, ("control",), 3)["control"].tolist() == [1, 2, 3]
    assert taken(content, SHARED, ("control",), 3) == {}
    for names, dimension in (((), 3), (("control",), 2)):
        with pytest.raises(ValueError, match="client-state-vectors: 'control' is no finite vector"):
            taken(content, OWN, names, dimension)
    put(content, OWN, {"control": np.float32([1, np.nan, 3])})
    with pytest.raises(ValueError, match="no finite vector of 3 entries"):
        taken(content, OWN, ("control",), 3)


def test_a_client_that_fails_remembers_what_it_did(model, start) -> None:
    def breaks(job, result):
        if job.round == 2:
            raise RuntimeError("gone")
        return result

    world = scaffold_world(model, faults={1: breaks})
    federation = born(world, start)
    run_round(federation, make_step(1, [0, 1]), "keep", world.engine)
    before = {client: own["control"].copy() for client, own in federation.remembered.items()}
    assert run_round(federation, make_step(2, [0, 1]), "keep", world.engine).contributors == (0,)
    assert np.array_equal(federation.remembered[1]["control"], before[1])
    assert not np.array_equal(federation.remembered[0]["control"], before[0])


def test_unlearning_corrects_nothing_and_forgets_the_clients_memory(model, start) -> None:
    records = tuple(record.record_id for record in make_records(1, 4))
    request = Request(number=1, client=1, round=1, scope="client", record_ids=records)
    method = Npo(rounds=1)
    world = scaffold_world(model, methods=[method], requests=[request])
    plain = make_world(
        model, weighting="uniform", clients=CLIENTS, more=0, methods=[method], requests=[request]
    )
    federation = born(world, start)
    run_round(federation, make_step(1, [0, 1, 2]), "keep", world.engine)
    common = federation.shared["control"].copy()
    ordinary = born(plain, federation.adapter)
    ordinary.round = 1
    step = make_step(2, [0, 2], UnlearningStep(branch="npo", request=1, index=0))
    for one, of in ((federation, world), (ordinary, plain)):
        assert run_round(one, step, "npo", of.engine).contributors == (0, 1, 2)
    assert to_vector(federation.adapter) == pytest.approx(to_vector(ordinary.adapter), abs=1e-6)
    assert np.array_equal(federation.shared["control"], common)
    assert sorted(federation.remembered) == [0, 2]


def test_state_is_saved_and_forked(model, start, tmp_path: Path) -> None:
    world = scaffold_world(model)
    federation = born(world, start)
    run_round(federation, make_step(1, [0, 1]), "keep", world.engine)
    fork = federation.fork()
    federation.save(tmp_path)
    again = Federation.load(tmp_path, federation.algorithm, federation.adapter)
    for one in (federation, fork, again):
        run_round(one, make_step(2, [0, 2]), "keep", world.engine)
    for one in (fork, again):
        assert same(one.adapter, federation.adapter)
        assert np.array_equal(one.shared["control"], federation.shared["control"])
        assert sorted(one.remembered) == [0, 1, 2]
    assert federation.stored_bytes() == to_vector(start).nbytes


MASKS = [{"stage": "clip", "norm": 50.0}, {"stage": "secure_aggregation", "min_cohort": 2}]


def test_masks_add_up_both_vectors(model, start) -> None:
    masked, plain = scaffold_world(model, privacy=MASKS), scaffold_world(model)
    one, other = born(masked, start), born(plain, start)
    for federation, world in ((one, masked), (other, plain)):
        run_round(federation, make_step(1, [0, 1, 2]), "keep", world.engine)
    assert to_vector(one.adapter) == pytest.approx(to_vector(other.adapter), abs=1e-4)
    assert one.shared["control"] == pytest.approx(other.shared["control"], abs=1e-2)


SGD = {"optimizer": "sgd", "lr": 0.1, "epochs": 1, "batch_size": 9}
SCENARIO = merged(LIFE, federation={"participation": 0.7, "strategy": "scaffold", "local": SGD})


def test_a_life_that_was_killed_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", SCENARIO)
    assert differences(whole, broken_off(tmp_path / "killed", SCENARIO, monkeypatch, 4)) == []


def test_clients_side_by_side_have_corrections_of_their_own(tmp_path: Path) -> None:
    alone, together = (
        run(tmp_path / str(cohort), merged(SCENARIO, execution__cohort=cohort)) for cohort in (1, 8)
    )
    values = [
        [row["value"] for row in one.table("metrics").to_pylist() if row["metric"] == "nll"]
        for one in (alone, together)
    ]
    assert values[0] == pytest.approx(values[1], abs=1e-3)


def test_other_optimisers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="scaffold takes optimizer: sgd with momentum: 0"):
        run(tmp_path, merged(SCENARIO, federation__local={"optimizer": "adamw"}))
    with pytest.raises(ScenarioError, match=r"federation.local.momentum: scaffold takes"):
        run(tmp_path, merged(SCENARIO, federation__local=SGD | {"momentum": 0.9}))
