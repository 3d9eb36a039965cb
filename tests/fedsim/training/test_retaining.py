"""Two losses in a client's steps: one gradient of both; surgery takes what goes against the second."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.model.adapter import AdapterModel
from fedsim.model.vectors import Arrays
from fedsim.training.batched import BatchedExecutor
from fedsim.training.cohorts import UNLIMITED, CohortLimit
from fedsim.training.config import LocalConfig
from fedsim.training.jobs import Retained, TrainJob
from fedsim.training.objectives import MeanNll, ReferenceKl, RetainTerm
from fedsim.training.sequential import SequentialExecutor
from fedsim.unlearning.methods.grad_ascent import NegatedNll
from fedsim.unlearning.methods.grad_diff import GradDiff
from fedsim.unlearning.methods.npo import Npo
from fedsim.unlearning.methods.pdu import Pdu
from fedsim.unlearning.methods.rmu import Pinned, Rmu
from tests.fedsim.training.test_sequential import SGD, make_job, train
from tests.world import encode, make_records

RECORDS = make_records(2, 5)


def kept(model: AdapterModel, records=RECORDS, **term) -> Retained:
    return Retained(
        term=RetainTerm(**({"objective": MeanNll(), "records": "own"} | term)),
        pairs=encode(model, records),
        record_ids=tuple(record.record_id for record in records),
    )


def climb(model: AdapterModel, start: Arrays, **more) -> TrainJob:
    return make_job(model, start, objective=NegatedNll(), **more)


def lengthwise(update: np.ndarray, other: np.ndarray) -> float:
    return float(update.astype(np.float64) @ other.astype(np.float64))


@pytest.fixture(scope="module")
def executor(model: AdapterModel) -> SequentialExecutor:
    return SequentialExecutor(model=model)


@given(gamma=st.floats(0.1, 2), alpha=st.floats(0.1, 2))
@settings(max_examples=5)
def test_a_step_is_the_weighted_sum_of_both(executor, model, start, gamma: float, alpha: float) -> None:
    alone = train(executor, climb(model, start))
    other = train(executor, make_job(model, start, client=2))
    both = train(executor, climb(model, start, retained=kept(model, gamma=gamma, alpha=alpha)))
    assert both == pytest.approx(gamma * alone + alpha * other, abs=1e-6)


def test_surgery_projects_out_what_goes_against_the_kept(executor, model, start) -> None:
    """Ascent and descent on the same kind of records conflict; after it, the step still serves the kept."""
    alone = train(executor, climb(model, start)).astype(np.float64)
    other = train(executor, make_job(model, start, client=2)).astype(np.float64)
    assert lengthwise(alone, other) < 0
    expected = alone - (alone @ other) / (other @ other) * other + other
    both = train(executor, climb(model, start, retained=kept(model, surgery=True)))
    assert both == pytest.approx(expected, abs=1e-6)
    assert lengthwise(both - other, other) == pytest.approx(0, abs=1e-6)


def test_without_a_conflict_surgery_changes_nothing(executor, model, start) -> None:
    job = make_job(model, start)
    plain, cut = (
        train(executor, replace(job, retained=kept(model, surgery=surgery))) for surgery in (False, True)
    )
    assert plain.tobytes() == cut.tobytes()


@pytest.mark.parametrize("count", [1, 5, 30])
def test_the_kept_come_again_as_long_as_there_are_steps(executor, model, start, count: int) -> None:
    local = LocalConfig(epochs=2, batch_size=2, lr=1e-3)
    records = make_records(2, count)
    job = climb(model, start, local=local, retained=kept(model, records))
    (result,) = executor.train_clients([job])
    assert (result.steps, result.examples) == (6, 5)
    forgotten = 2 * sum(len(pair.input_ids) for pair in job.pairs)
    longest = max(len(pair.input_ids) for pair in encode(model, records))
    assert forgotten < result.tokens <= forgotten + 6 * 2 * longest
    assert train(executor, job).tobytes() == result.update.tobytes()


def test_such_a_client_trains_alone_beside_others(model, start) -> None:
    """In an executor of cohorts, with the same result."""
    cohorts = BatchedExecutor(model, CohortLimit(clients=8, tokens=UNLIMITED))
    jobs = [make_job(model, start), climb(model, start, client=3, retained=kept(model))]
    results = cohorts.train_clients(jobs)
    assert [result.error for result in results] == [None, None]
    alone = train(SequentialExecutor(model=model), jobs[1])
    assert results[1].update.tobytes() == alone.tobytes()


def test_two_losses_cannot_be_had_without_gradients(executor, model, start) -> None:
    local = SGD.model_copy(update={"optimizer": "spsa", "weight_decay": 0.0})
    (result,) = executor.train_clients([climb(model, start, local=local, retained=kept(model))])
    assert "spsa takes one loss a step" in str(result.error)


def test_a_reference_is_shown_to_both(executor, model, start) -> None:
    retained = kept(model, objective=ReferenceKl())
    update = train(executor, climb(model, start, reference=start, retained=retained))
    assert update == pytest.approx(train(executor, climb(model, start)), abs=1e-6)  # no divergence yet


def test_methods_say_where_the_retain_term_is() -> None:
    method = GradDiff(retain_on="own", gamma=0.5, alpha=2.0, surgery=True)
    term = method.local("target", 0).retain
    assert term == RetainTerm(MeanNll(), records="own", gamma=0.5, alpha=2.0, surgery=True)
    plan = method.plan(None, 0)  # type: ignore[arg-type]
    assert plan.helper is None
    assert plan.target is not None
    assert plan.target.weight == 1.0
    assert GradDiff().local("target", 0).retain is None
    assert Npo(retain_on="public", retain="kl").local("target", 0).retain == RetainTerm(
        ReferenceKl(), records="public"
    )
    assert Rmu(retain_on="own").local("target", 0).retain == RetainTerm(Pinned(-2), records="own")
    assert GradDiff(retain_on="own", alpha=0).local("target", 0).retain is None


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="choose retain_on: own or public"):
        GradDiff(surgery=True)
    with pytest.raises(ValueError, match="choose retain_on: own or public, and alpha above 0"):
        GradDiff(surgery=True, retain_on="own", alpha=0)
    with pytest.raises(ValueError, match="choose helpers") as caught:
        Pdu(retain_on="own")
    assert "retain_on" in str(caught.value)
