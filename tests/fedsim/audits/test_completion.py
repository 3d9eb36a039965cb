"""Completing recovered prefixes: by the model, and by which token's loss the update looks like."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from fedsim.audits.completion import complete, match_next, secrets_told
from fedsim.audits.gradient_inversion import invert
from fedsim.data.authors import load_authors
from fedsim.model.config import LoraConfig, ModelConfig
from fedsim.model.loading import load_model
from fedsim.model.predictor import CausalPredictor
from tests.fedsim.audits.test_gradient_inversion import noisy, pairs_of, update_of
from tests.world import make_model, random_arrays


class Counting:
    """A predictor that goes on counting from a prompt's last token."""

    def logits(
        self, input_ids_BT: torch.Tensor, attention_mask_BT: torch.Tensor, wanted_BT: torch.Tensor
    ) -> torch.Tensor:
        raise NotImplementedError

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        return [[prompt[-1] + step for step in range(1, max_new_tokens + 1)] for prompt in prompts]


def test_prefixes_are_completed_and_searched_for_secrets_by_hand():
    completed = complete(Counting(), [(1, 5), (9,)], max_new_tokens=2)
    assert completed == ((1, 5, 6, 7), (9, 10, 11))
    assert secrets_told(completed, [(6, 7), (7, 6), (9, 11)]) == {
        "told": pytest.approx(1 / 3),
        "rouge_l_recall": pytest.approx((1 + 1 / 2 + 1) / 3),
    }
    assert secrets_told([], [(6, 7)]) == {"told": 0.0, "rouge_l_recall": 0.0}


@pytest.mark.parametrize("secrets", [[], [()]])
def test_no_secret_is_refused(secrets):
    with pytest.raises(ValueError, match="at least one"):
        secrets_told([(1, 2)], secrets)


@pytest.fixture(scope="module")
def llama(llama_base):
    return make_model(llama_base)


def test_the_trained_label_is_the_one_whose_loss_looks_like_the_update(llama):
    """One answer token: its loss and that of the end marker are all there is."""
    adapter, pairs = random_arrays(llama, seed=2), pairs_of(llama, (("w3 w17 w5", "w30"),))
    update = update_of(llama, adapter, pairs)
    ids = pairs[0].input_ids
    token, cosine = match_next(llama, adapter, update, ids[:-2])
    assert token == ids[-2]
    assert 0.5 < cosine <= 1.0
    # The negative control: the opposite update is no better explained by it than by anything else.
    other, _ = match_next(llama, adapter, -update, ids[:-2])
    assert other != ids[-2]


def test_nothing_to_match_and_unusable_arguments(llama):
    adapter = llama.arrays()
    zeros = np.zeros(sum(value.size for value in adapter.values()), dtype=np.float32)
    assert match_next(llama, adapter, zeros, (5,))[1] == 0.0
    for wrong in ({"prefix": ()}, {"prefix": (5,), "candidates": 0}, {"prefix": (5,), "update": zeros[1:]}):
        with pytest.raises(ValueError, match="must"):
            match_next(llama, adapter, **({"update": zeros} | wrong))


@pytest.mark.slow
def test_a_private_value_is_read_though_its_token_leaves_no_input():
    """Prefix by spans, value by its loss; the model alone does not know it."""
    model = load_model(ModelConfig(base="tiny-authors", lora=LoraConfig(r=16, alpha=16)))
    start = model.fresh(0)
    genre = load_authors(clients=1).clients[0][2]
    pairs = pairs_of(model, ((genre.question, genre.answer),))
    secret = pairs[0].input_ids[-2:-1]
    update = update_of(model, start, pairs)
    prefix = invert(model, start, update).sequences[0]
    assert (*prefix, *secret) == pairs[0].input_ids[:-1]

    model.load(start)
    predictor = CausalPredictor(model=model.module, pad_id=model.pad_id, end_ids=model.end_ids)
    guessed = complete(predictor, [prefix], max_new_tokens=1)
    assert secrets_told(guessed, [secret])["told"] == 0.0
    for seen in (update, noisy(update, 1e-2)):
        assert match_next(model, start, seen, prefix)[0] == secret[0]
