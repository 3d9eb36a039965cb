"""Losses that are shown refusals: which ones, beside which answers, and alike in every executor."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from fedsim.data.refusals import REFUSALS, refusal_for
from fedsim.model.config import LoraConfig
from fedsim.model.forward import Pass, forward
from fedsim.model.prompts import TextFormat
from fedsim.model.refusing import encode_refusal
from fedsim.model.text import collate, encode_pair
from fedsim.model.vectors import to_vector
from fedsim.training.batched import BatchedExecutor
from fedsim.training.cohorts import CohortLimit, plan_cohorts, tokens_per_step
from fedsim.training.config import LocalConfig
from fedsim.training.jobs import TWO_ANSWERS, TrainJob
from fedsim.training.objectives import MeanNll, Needs
from fedsim.training.sequential import SequentialExecutor
from privacy import Ledger, LocalTask
from privacy.example_dp import ExampleDpConfig, ExampleDpRule
from tests.fedsim.training.test_cohort import UNLIMITED, in_fp64, start_of
from tests.world import FORMAT, encode, make_model, make_records, word_tokenizer


@dataclass(frozen=True)
class Rather:
    """The refusal's NLL less a share of the answer's, with a reference if there is one."""

    share: float = 0.5
    reference: bool = False

    @property
    def needs(self) -> Needs:
        return Needs(answers="both", reference=self.reference)

    def __call__(self, current: Pass, reference: Pass | None) -> torch.Tensor:
        assert current.refusal is not None
        found = current.refusal.nll_B - self.share * current.nll_B
        if reference is not None:
            assert reference.refusal is not None
            found = found + (current.nll_B - reference.nll_B) * reference.refusal.nll_B / 10
        return found


@dataclass(frozen=True)
class Refusing(MeanNll):
    """The NLL of refusals alone."""

    needs: ClassVar[Needs] = Needs(answers="refusal")


def refusals(model, records) -> tuple:
    return tuple(
        encode_refusal(model.tokenizer, FORMAT, record, own, 9)
        for record, own in zip(records, encode(model, records), strict=True)
    )


def make_job(model, client: int, count: int, objective, **more) -> TrainJob:
    records = make_records(client, count)
    fields = {
        "client": client,
        "round": 3,
        "seed": 9,
        "adapter": start_of(model, 11),
        "reference": start_of(model, 12),
        "pairs": encode(model, records),
        "refusals": refusals(model, records),
        "record_ids": tuple(record.record_id for record in records),
        "local": LocalConfig(epochs=2, batch_size=3, lr=0.01, optimizer="sgd", momentum=0.5),
        "objective": objective,
    }
    return TrainJob(**(fields | more))


def train(executor, jobs) -> list:
    results = executor.train_clients(jobs)
    assert [result.error for result in results] == [None] * len(jobs)
    return results


# ------------------------------------------------------------------------------------ refusals


def test_a_records_refusal_is_its_own() -> None:
    """It follows from seed and record alone, and records share the list about evenly."""
    assert len(REFUSALS) == len(set(REFUSALS)) == 20
    assert refusal_for("a/1", 1) == refusal_for("a/1", 1)
    drawn = Counter(refusal_for(f"a/{number}", 1) for number in range(2000))
    assert set(drawn) == set(REFUSALS)
    assert max(drawn.values()) < 2 * min(drawn.values())
    assert sum(refusal_for(f"a/{n}", 1) != refusal_for(f"a/{n}", 2) for n in range(100)) > 80


def test_a_refusal_stands_where_the_answer_stood(model) -> None:
    tokenizer = word_tokenizer([*"qrs", *{word for said in REFUSALS for word in said.split()}])
    (record,) = make_records(0, 1)
    record = replace(record, question="q r s", answer="q")
    own = encode_pair(tokenizer, record.question, record.answer, FORMAT)
    found = encode_refusal(tokenizer, FORMAT, record, own, 3)
    assert found.prompt == own.prompt
    assert found.ended
    said = tokenizer.decode(found.input_ids[found.answer_start : found.answer_end])
    assert said == refusal_for(record.record_id, 3)


@pytest.mark.parametrize("most", [7, 10])
def test_a_question_that_its_answer_has_cut_is_as_short_before_the_refusal(most: int) -> None:
    """Six words are asked and four are answered: the prompt has 2 or 5 tokens left, as before the answer."""
    (record,) = make_records(0, 1)
    record = replace(record, question="w1 w2 w3 w4 w5 w6", answer="w7 w8 w9 w10")
    fmt = TextFormat(max_tokens=most)
    own = encode_pair(word_tokenizer(), record.question, record.answer, fmt)
    assert len(own.prompt) == most - 5
    for seed in range(20):
        found = encode_refusal(word_tokenizer(), fmt, record, own, seed)
        assert len(found.input_ids) <= most
        assert found.prompt == own.prompt[len(own.prompt) - len(found.prompt) :]
        spoken = len(refusal_for(record.record_id, seed).split())
        assert len(found.prompt) == max(min(len(own.prompt), most - spoken - 1), 1)


@pytest.mark.parametrize("most", [7, 8, 12])
def test_cut_on_the_right_a_question_stands_whole_before_either_answer(most: int) -> None:
    (record,) = make_records(0, 1)
    record = replace(record, question="w1 w2 w3 w4 w5 w6", answer="w7 w8 w9 w10")
    fmt = TextFormat(max_tokens=most, truncation="right")
    own = encode_pair(word_tokenizer(), record.question, record.answer, fmt)
    for seed in range(5):
        found = encode_refusal(word_tokenizer(), fmt, record, own, seed)
        assert found.prompt == own.prompt == own.input_ids[:6]
        assert len(found.input_ids) <= most


# ---------------------------------------------------------------------------------------- passes


def test_a_pass_of_both_answers_is_taken_apart_by_groups(model, start) -> None:
    """Two clients with 2 and 1 records: rows own, own, refusal, refusal, own, refusal."""
    model.load(start)
    records = make_records(0, 3)
    own, other = encode(model, records), refusals(model, records)
    joint = [own[0], own[1], other[0], other[1], own[2], other[2]]
    with torch.no_grad():
        found, first, second = (
            forward(model.module, collate(pairs, pad_id=model.pad_id)) for pairs in (joint, own, other)
        )
    apart = replace(found, hidden_NH=found.logits_NV).with_refusals([2, 1])
    assert apart.refusal is not None
    for one, expected in ((apart, first), (apart.refusal, second)):
        torch.testing.assert_close(one.nll_B, expected.nll_B)
        torch.testing.assert_close(one.logits_NV, expected.logits_NV)
        torch.testing.assert_close(one.hidden_NH, expected.logits_NV)
        assert one.count_B.tolist() == expected.count_B.tolist()
        torch.testing.assert_close(one.sample_sums(one.logits_NV[:, 0]), one.samples(0, 3).sample_sums(
            expected.logits_NV[:, 0]))  # fmt: skip
    last = apart.samples(1, 3)
    assert last.refusal is not None
    torch.testing.assert_close(last.refusal.nll_B, second.nll_B[1:])
    torch.testing.assert_close(last.logits_NV, first.samples(1, 3).logits_NV)


# ------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def precise(any_base):
    return in_fp64(make_model(any_base, lora=LoraConfig(r=2, alpha=6)))


@pytest.mark.parametrize(
    "objectives",
    [[Rather()] * 4, [Rather(), Rather(0.1), Rather(0.1), Rather()], [Rather(reference=True)] * 4,
     [Refusing()] * 4],
    ids=["both", "of two kinds", "with a reference", "refusals alone"],
)  # fmt: skip
def test_together_as_one_at_a_time_in_fp64(precise, objectives) -> None:
    jobs = [make_job(precise, c, 2 + c, objective) for c, objective in enumerate(objectives)]
    alone = train(SequentialExecutor(model=precise), jobs)
    for one, two in zip(train(BatchedExecutor(precise, UNLIMITED), jobs), alone, strict=True):
        np.testing.assert_allclose(one.update, two.update, rtol=0, atol=1e-7)  # one is written down in fp32
        assert one.loss == pytest.approx(two.loss)
        assert (one.tokens, one.steps) == (two.tokens, two.steps)


def test_a_step_is_minus_lr_times_the_gradient_of_both_passes(model, start) -> None:
    """Against autograd over two passes of their own."""
    local = LocalConfig(epochs=1, batch_size=99, lr=0.1, optimizer="sgd", max_grad_norm=None)
    job = make_job(model, 1, 4, Rather(), adapter=start, local=local)
    (done,) = train(SequentialExecutor(model=model), [job])
    model.load(start)
    own, other = (
        forward(model.module, collate(pairs, pad_id=model.pad_id)) for pairs in (job.pairs, job.refusals)
    )
    loss = (other.nll_B - 0.5 * own.nll_B).mean()
    slopes = torch.autograd.grad(loss, list(model.parameters().values()))
    named = dict(zip(model.parameters(), (slope.numpy() for slope in slopes), strict=True))
    assert done.update == pytest.approx(-0.1 * to_vector(named), abs=1e-6)
    assert done.loss == pytest.approx(float(loss), rel=1e-5)


def test_tokens_of_every_pass_count(model) -> None:
    own, other = (
        sum(len(pair.input_ids) for pair in pairs)
        for pairs in (make_job(model, 1, 4, MeanNll()).pairs, make_job(model, 1, 4, MeanNll()).refusals)
    )
    for objective, expected in (
        (MeanNll(), own),
        (Refusing(), other),
        (Rather(), own + other),
        (Rather(reference=True), 2 * (own + other)),
    ):
        (done,) = train(SequentialExecutor(model=model), [make_job(model, 1, 4, objective)])
        assert done.tokens == 2 * expected


def test_cohorts_are_of_one_kind_and_have_room_for_both_answers(model) -> None:
    jobs = [make_job(model, 1, 4, objective) for objective in (MeanNll(), Rather(), Refusing(), Rather())]
    assert sorted(map(sorted, plan_cohorts(jobs, UNLIMITED))) == [[0], [1, 3], [2]]
    each = tokens_per_step([*jobs[1].pairs, *jobs[1].refusals], 6)
    both = [jobs[1], jobs[3]]
    assert len(plan_cohorts(both, CohortLimit(clients=9, tokens=2 * each))) == 1
    assert len(plan_cohorts(both, CohortLimit(clients=9, tokens=2 * each - 1))) == 2


def test_without_gradients_both_answers_work_too(model) -> None:
    local = LocalConfig(epochs=20, batch_size=4, lr=2e-3, optimizer="spsa")
    (done,) = train(BatchedExecutor(model, UNLIMITED), [make_job(model, 1, 4, Rather(), local=local)])
    assert done.codes
    assert np.abs(done.update).max() > 0
    (found,) = train(SequentialExecutor(model=model), [make_job(model, 1, 4, Rather(), importance=True)])
    assert (found.update >= 0).all()


# -------------------------------------------------------------------------------------- privacy


def private(model, objective, *, noise: float = 1e-6) -> TrainJob:
    config = ExampleDpConfig(noise_multiplier=noise, clip_norm=0.1, delta=1e-3)
    task = LocalTask(
        client="1",
        round_id=3,
        branch="b",
        attempt=0,
        nominal_records=5,
        steps=2,
        planned_steps=2,
        batch_size=2.0,
    )
    return make_job(model, 1, 5, objective, rule=ExampleDpRule(config), task=task, ledger=Ledger())


@pytest.mark.parametrize("batched", [False, True])
def test_single_records_gradients_of_two_texts_are_refused(model, batched: bool) -> None:
    executor = BatchedExecutor(model, UNLIMITED) if batched else SequentialExecutor(model=model)
    job = private(model, Rather())
    (done,) = executor.train_clients([job])
    assert TWO_ANSWERS in str(done.error)
    assert job.ledger is not None
    assert not list(job.ledger.releases())


def test_single_records_gradients_of_refusals_are_those_of_any_text(model) -> None:
    """As if the refusals were the records' own answers, in both executors."""
    job = private(model, Refusing())
    plain = replace(job, objective=MeanNll(), pairs=job.refusals, refusals=(), ledger=Ledger())
    (expected,) = train(SequentialExecutor(model=model), [plain])
    for executor in (SequentialExecutor(model=model), BatchedExecutor(model, UNLIMITED)):
        (done,) = train(executor, [replace(job, ledger=Ledger())])
        np.testing.assert_allclose(done.update, expected.update, atol=1e-5)
