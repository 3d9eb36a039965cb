"""An ensemble: probabilities are averaged, not logits, and answers follow them token by token."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim.model.ensemble import Averaged
from fedsim.model.predictor import Predictor, predictor_of
from tests.world import same

END = 4


class Table:
    """A model whose next token depends on the last one alone: row ``token`` of a table of logits."""

    def __init__(self, rows_VV) -> None:
        self.rows_VV = torch.tensor(rows_VV, dtype=torch.float32)
        self.asked: list[list[list[int]]] = []

    def logits(self, input_ids_BT, attention_mask_BT, wanted_BT):
        self.asked.append(input_ids_BT.tolist())
        return self.rows_VV[input_ids_BT[wanted_BT.bool()]]

    def generate(self, prompts, max_new_tokens):
        raise AssertionError("an ensemble does not ask its parts for whole answers")


def tables(*seeds: int) -> list[Table]:
    return [Table(np.random.default_rng(seed).normal(size=(5, 5)) * 3) for seed in seeds]


def ensemble(parts, positions: int | None = None) -> Averaged:
    return Averaged(parts=tuple(parts), end_ids=frozenset({END}), positions=positions)


def test_probabilities_are_averaged_by_hand() -> None:
    """Probabilities (1/2, 1/2) and (1/5, 4/5) make (7/20, 13/20)."""
    parts = [Table(np.log([[0.5, 0.5], [0.5, 0.5]])), Table(np.log([[0.2, 0.8], [0.2, 0.8]]))]
    one = torch.ones((1, 1), dtype=torch.long)
    found = ensemble(parts).logits(torch.zeros((1, 1), dtype=torch.long), one, one)
    assert found.exp().tolist() == [pytest.approx([0.35, 0.65])]


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=4), st.integers(0, 10))
def test_the_mean_is_a_distribution_between_its_parts(seeds, shift) -> None:
    parts = tables(*seeds)
    ids = torch.tensor([[0, 1, 2, 3]])
    wanted = torch.ones_like(ids)
    found = ensemble(parts).logits(ids, wanted, wanted).exp()
    each = torch.stack([part.rows_VV[:4].softmax(-1) for part in parts])
    assert found.sum(-1).numpy() == pytest.approx(np.ones(4), abs=1e-5)
    assert bool((found <= each.amax(0) + 1e-5).all())
    assert bool((found >= each.amin(0) - 1e-5).all())
    moved = [Table(part.rows_VV.numpy() + shift) for part in parts]
    again = ensemble(moved).logits(ids, wanted, wanted).exp()
    assert again.numpy() == pytest.approx(found.numpy(), abs=1e-5)


def test_answers_follow_the_mean_until_an_end() -> None:
    parts = tables(1, 2, 3)
    mean_VV = torch.stack([part.rows_VV.softmax(-1) for part in parts]).mean(0)
    expected = []
    for prompt in ([0], [1, 2, 3], [2]):
        answer: list[int] = []
        while len(answer) < 6 and (token := int(mean_VV[(prompt + answer)[-1]].argmax())) != END:
            answer.append(token)
        expected.append(answer)
    assert ensemble(parts).generate([[0], [1, 2, 3], [2]], 6) == expected
    assert ensemble(parts, positions=4).generate([[0], [1, 2, 3], [2]], 6) == [
        answer[: max(4 - length, 0)] for answer, length in zip(expected, (1, 3, 1), strict=True)
    ]


def test_an_ensemble_of_one_answers_as_it_does(model, start) -> None:
    model.load(start)
    one = predictor_of(model, model.module)
    alone = Averaged.of([one], model)
    assert isinstance(alone, Predictor)
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14]]
    assert alone.generate(prompts, 5) == one.generate(prompts, 5)


def test_replicas_of_one_base_hold_adapters_of_their_own(model, start) -> None:
    other = {name: value + 0.1 for name, value in start.items()}
    first, second = model.replicas(2)
    first.load(start)
    second.load(other)
    assert same(first.arrays(), start)
    ids = torch.tensor([[5, 6, 7]])
    ones = torch.ones_like(ids)
    both = Averaged.of([predictor_of(one, one.module) for one in (first, second)], model)
    each = [predictor_of(one, one.module).logits(ids, ones, ones).softmax(-1) for one in (first, second)]
    assert not torch.allclose(*each)
    assert both.logits(ids, ones, ones).exp().numpy() == pytest.approx(
        ((each[0] + each[1]) / 2).numpy(), abs=1e-5
    )
