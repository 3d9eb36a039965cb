"""RMU: its losses by hand, what it reads of a base, and that training does what they ask."""

import numpy as np
import pytest
import torch

from fedsim.model.forward import block_of, forward, forward_with_hidden
from fedsim.model.text import collate
from fedsim.training.batched import BatchedExecutor
from fedsim.training.cohorts import CohortLimit
from fedsim.training.config import LocalConfig
from fedsim.training.jobs import TrainJob
from fedsim.training.sequential import SequentialExecutor
from fedsim.unlearning.methods.rmu import Misdirected, Pinned, Rmu
from tests.world import encode, make_records


@pytest.fixture(scope="module")
def batch(model):
    return collate(encode(model, make_records(0, 3)), pad_id=model.pad_id)


def job(model, start, objective, **more) -> TrainJob:
    records = make_records(0, 3)
    local = LocalConfig(epochs=8, batch_size=3, lr=5e-3)
    return TrainJob(
        client=0,
        round=1,
        seed=1,
        adapter=start,
        pairs=encode(model, records),
        record_ids=tuple(record.record_id for record in records),
        local=local,
        objective=objective,
        **more,
    )


def test_a_pass_with_hidden_is_the_pass_and_what_the_base_says_leaves_its_block(model, start, batch) -> None:
    """Against transformers' own ``output_hidden_states``, where entry n + 1 is what leaves block n."""
    model.load(start)
    with torch.no_grad():
        found, plain = forward_with_hidden(model.module, batch, 0), forward(model.module, batch)
        every = model.module(input_ids=batch.input_ids_BT[:, :-1], output_hidden_states=True).hidden_states
    assert torch.equal(found.logits_NV, plain.logits_NV)
    assert found.hidden_NH is not None
    used_BT = batch.labels_BT[:, 1:] != -100
    assert torch.allclose(found.hidden_NH, every[1][used_BT], atol=1e-6)


def test_blocks_count_from_both_ends(model) -> None:
    count = model.module.config.num_hidden_layers
    assert block_of(model.module, -count) is block_of(model.module, 0)
    with pytest.raises(
        ValueError, match=f"layer={count} is not in this base; its blocks are 0 to {count - 1}"
    ):
        block_of(model.module, count)


def test_losses_by_hand(model, start, batch) -> None:
    model.load(start)
    with torch.no_grad():
        current = forward_with_hidden(model.module, batch, 0)
    assert Pinned(0)(current, current).tolist() == [0.0] * 3
    hidden_NH = current.hidden_NH
    near, far = Misdirected(0, 1e-9, 0)(current, None), Misdirected(0, 1.0, 0)(current, None)
    squares_N = hidden_NH.square().mean(-1)
    ends = np.cumsum(current.count_B.tolist())
    means = [float(part.mean()) for part in np.split(squares_N.numpy(), ends[:-1])]
    assert near.tolist() == pytest.approx(means, rel=1e-5)
    assert not torch.equal(far, Misdirected(0, 1.0, 1)(current, None))


@pytest.mark.parametrize("batched", [False, True])
def test_training_pulls_the_output_to_the_direction(model, start, batched) -> None:
    limit = CohortLimit(clients=8, tokens=100_000)
    executor = BatchedExecutor(model, limit) if batched else SequentialExecutor(model=model)
    first = job(model, start, Misdirected(0, 2.0, 0))
    (done,) = executor.train_clients([first])
    assert done.error is None
    one_step = job(model, start, Misdirected(0, 2.0, 0))
    (begun,) = executor.train_clients([one_step])
    assert begun.loss == done.loss
    losses = losses_of(model, start, done.update, Misdirected(0, 2.0, 0))
    assert losses[1] < losses[0]


def losses_of(model, start, update, objective) -> list[float]:
    """The mean loss before and after an update."""
    from fedsim.model.vectors import from_vector, to_vector

    found = []
    for vector in (to_vector(start), to_vector(start) + update):
        model.load(from_vector(vector, start))
        records = collate(encode(model, make_records(0, 3)), pad_id=model.pad_id)
        with torch.no_grad():
            found.append(float(objective(forward_with_hidden(model.module, records, 0), None).mean()))
    return found


def test_a_block_that_the_base_lacks_fails_at_the_client_with_its_number(model, start) -> None:
    (done,) = SequentialExecutor(model=model).train_clients([job(model, start, Misdirected(99, 2.0, 0))])
    assert "layer=99 is not in this base" in str(done.error)


def test_roles() -> None:
    assert Rmu().local("target", 0).objective == Misdirected(-2, 2.0, 0)
    assert Rmu(layer=3).local("helper", 0).objective == Pinned(3)
    assert Rmu(pin=False, retain="kl").local("helper", 0).objective.needs.layer is None
