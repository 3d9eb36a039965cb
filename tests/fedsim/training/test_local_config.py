"""How much local training does, and at what rate: by hand, and against the schedules of transformers."""

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedsim.training.config import LocalConfig, ScheduleConfig
from fedsim.training.jobs import parts_of, shuffled_batches
from fedsim.training.notes import Notes
from fedsim.training.sequential import SequentialExecutor
from tests.fedsim.training.test_cohort import make_job
from tests.world import make_model


@pytest.mark.parametrize(("shape", "named"), [("linear", "linear"), ("cosine", "cosine")])
@pytest.mark.parametrize("total", [1, 2, 7, 40])
def test_rates_fall_as_those_of_transformers(shape: str, named: str, total: int) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = transformers.get_scheduler(named, optimizer, num_warmup_steps=0, num_training_steps=total)
    expected = []
    for _ in range(total):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    found = ScheduleConfig(shape=shape, over="steps").factors(total)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_after_the_warm_up_too(shape: str) -> None:
    """Their warm-up begins with a step at rate 0, ours does not."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = transformers.get_scheduler(shape, optimizer, num_warmup_steps=3, num_training_steps=10)
    expected = []
    for _ in range(10):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    found = ScheduleConfig(shape=shape, over="steps", warmup=0.3).factors(10)
    np.testing.assert_allclose(found[3:], expected[3:], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found[:3], [0.25, 0.5, 0.75])


@given(
    shape=st.sampled_from(["constant", "linear", "cosine"]),
    warmup=st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.99]),
    floor=st.sampled_from([0.0, 0.1, 1.0]),
    total=st.integers(1, 60),
)
def test_no_step_is_without_effect(shape, warmup, floor, total) -> None:
    found = ScheduleConfig(shape=shape, over="steps", warmup=warmup, floor=floor).factors(total)
    assert len(found) == total
    assert ((found > 0) & (found <= 1)).all()
    assert found.max() == 1 or warmup * total > total - 1


def test_a_floor_is_where_it_ends() -> None:
    found = ScheduleConfig(shape="linear", floor=0.2).factors(4)
    assert found.tolist() == pytest.approx([1.0, 0.8, 0.6, 0.4])


def test_a_schedule_over_rounds_sets_the_rate_of_each() -> None:
    local = LocalConfig(lr=2.0, schedule=ScheduleConfig(shape="linear", over="rounds"))
    assert [local.in_round(round_, 4).lr for round_ in (1, 2, 3, 4)] == [2.0, 1.5, 1.0, 0.5]
    assert local.in_round(3, 4).schedule is None
    assert local.in_round(3, 4).rates(5).tolist() == [1.0] * 5


def test_a_schedule_over_steps_is_the_same_in_each_round() -> None:
    local = LocalConfig(lr=2.0, schedule=ScheduleConfig(shape="linear", over="steps"))
    assert local.in_round(3, 4) == local
    assert local.rates(4).tolist() == [2.0, 1.5, 1.0, 0.5]


def test_a_method_s_own_rate_follows_no_schedule_and_its_passes_have_no_bound() -> None:
    local = LocalConfig(epochs=2, steps=3, schedule=ScheduleConfig(over="steps"))
    assert local.instead(lr=None, epochs=None) == local
    assert local.instead(lr=0.5, epochs=None).rates(2).tolist() == [0.5, 0.5]
    assert local.instead(lr=None, epochs=4).planned_steps(8) == 4
    assert local.instead(lr=0.5, epochs=None).planned_steps(80) == 3


@pytest.mark.parametrize(
    ("epochs", "steps", "expected"), [(1, None, 3), (4, None, 12), (4, 5, 5), (4, 50, 12), (100, 10, 10)]
)
def test_steps_bound_the_passes(epochs: int, steps: int | None, expected: int) -> None:
    local = LocalConfig(epochs=epochs, steps=steps, batch_size=2)
    assert local.planned_steps(5) == expected


def test_bounded_steps_are_the_first_of_those_without_a_bound(llama_base) -> None:
    model = make_model(llama_base)
    whole = make_job(model, 1, 5, local=LocalConfig(epochs=3, batch_size=2))
    bounded = make_job(model, 1, 5, local=LocalConfig(epochs=3, batch_size=2, steps=4))
    first = [chosen.tolist() for chosen in shuffled_batches(whole)[:4]]
    assert [chosen.tolist() for chosen in shuffled_batches(bounded)] == first
    assert SequentialExecutor(model=model).train_clients([bounded])[0].steps == 4


def test_parts_of_a_step() -> None:
    positions = np.arange(5)
    assert [part.tolist() for part in parts_of(positions, LocalConfig(batch_size=5, micro_batch=2))] == [
        [0, 1],
        [2, 3],
        [4],
    ]
    assert [part.tolist() for part in parts_of(positions, LocalConfig())] == [[0, 1, 2, 3, 4]]


def test_losses_and_tokens_of_parts_are_those_of_the_step(llama_base) -> None:
    model = make_model(llama_base)
    results = [
        SequentialExecutor(model=model).train_clients(
            [make_job(model, 1, 5, local=LocalConfig(epochs=2, batch_size=5, micro_batch=micro))]
        )[0]
        for micro in (None, 2)
    ]
    assert results[0].steps == results[1].steps == 2
    assert results[0].tokens == results[1].tokens
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-5)


def test_notes_put_the_parts_of_a_step_together() -> None:
    class Asked:
        def tokens(self, client: int, chosen: np.ndarray) -> int:
            return 10 * len(chosen)

    notes = Notes(Asked(), clients=2, passes=2)
    whole = [np.arange(3), np.arange(1)]
    notes.add(whole, [(torch.tensor([1.0, 2.0, 7.0]), [2, 1]), (torch.tensor([6.0]), [1, 0])])
    assert notes.losses() == [[3.0], [7.0]]
    assert notes.tokens_K.tolist() == [60, 20]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch_size": 4, "micro_batch": 5}, "5 is more than the 4 records of a step"),
        ({"optimizer": "spsa", "schedule": {"over": "steps"}}, "one learning rate a round"),
        ({"schedule": {"warmup": 1.0}}, "less than 1"),
        ({"steps": 0}, "greater than or equal to 1"),
    ],
)
def test_what_cannot_be(settings: dict, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        LocalConfig.model_validate(settings)
