"""Probabilities and truth ratios: cases by hand, then properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedsim.metrics.likelihood import choice_probability, mean_nll, probability
from fedsim.metrics.truth_ratio import forget_score, retain_score, truth_ratio

LOSSES = st.floats(0.0, 50.0)


def rows(width: int) -> st.SearchStrategy[np.ndarray]:
    return arrays.arrays(np.float64, (4, width), elements=LOSSES)


def test_probability_is_the_geometric_mean_over_the_selected_tokens() -> None:
    log_probs_IT = np.log([[0.5, 0.125, 0.3], [0.2, 0.9, 0.9]])
    mask_IT = np.array([[True, True, False], [True, False, False]])
    nll_I = mean_nll(log_probs_IT, mask_IT)
    assert nll_I == pytest.approx([np.log(4.0), np.log(5.0)])
    assert probability(nll_I) == pytest.approx([0.25, 0.2])


def test_an_item_without_tokens_has_no_probability() -> None:
    assert np.isnan(probability(mean_nll([[-1.0]], [[False]]))).all()


def test_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        mean_nll(np.zeros((2, 3)), np.ones((2, 2), dtype=bool))


def test_choice_probability_by_hand() -> None:
    nll_right = [-np.log(0.6), -np.log(0.5)]
    nll_wrong = [[-np.log(0.1), -np.log(0.1)], [-np.log(0.5), np.nan]]
    assert choice_probability(nll_right, nll_wrong) == pytest.approx([0.75, 0.5])


def test_choice_probability_needs_an_answer_and_an_alternative() -> None:
    found = choice_probability([np.nan, 1.0, 2000.0], [[1.0, 1.0], [np.nan, np.nan], [2000.0, 2000.0]])
    assert np.isnan(found[:2]).all()
    assert found[2] == pytest.approx(1 / 3)  # no underflow to 0 / 0
    assert np.isnan(choice_probability([1.0], np.empty((1, 0)))).all()


@pytest.mark.parametrize("shapes", [((2,), (3, 2)), ((2, 1), (2, 1)), ((2,), (2,))])
def test_answers_that_do_not_fit_together_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    right, wrong = (np.zeros(shape) for shape in shapes)
    for metric in (choice_probability, truth_ratio):
        with pytest.raises(ValueError, match="expected \\(items,\\)"):
            metric(right, wrong)


@given(rows(1), rows(3))
def test_shares_of_all_options_add_up_to_one(right: np.ndarray, wrong: np.ndarray) -> None:
    options = np.concatenate([right, wrong], axis=1)
    total = sum(choice_probability(options[:, k], np.delete(options, k, axis=1)) for k in range(4))
    assert total == pytest.approx(np.ones(4))


def test_truth_ratio_by_hand() -> None:
    ratio = truth_ratio([1.0, 3.0, np.nan, 1.0], [[2.0, 4.0], [2.0, np.nan], [1.0, 1.0], [np.nan, np.nan]])
    assert ratio[:2] == pytest.approx([np.exp(-2.0), np.e])
    assert np.isnan(ratio[2:]).all()
    assert forget_score(ratio[:2]) == pytest.approx([np.exp(-2.0), np.exp(-1.0)])
    assert retain_score(ratio[:2]) == pytest.approx([1.0 - np.exp(-2.0), 0.0])


def test_hopeless_paraphrase_scores_as_over_forgotten() -> None:
    ratio = truth_ratio([5000.0], [[0.0]])
    assert ratio.tolist() == [np.inf]
    assert forget_score(ratio).tolist() == [0.0]
    assert retain_score(ratio).tolist() == [0.0]
    assert forget_score([0.0]).tolist() == [0.0]


@given(rows(1), rows(3))
def test_scores_stay_in_range_and_forget_score_is_symmetric(right: np.ndarray, wrong: np.ndarray) -> None:
    ratio = truth_ratio(right[:, 0], wrong)
    for score in (forget_score(ratio), retain_score(ratio)):
        assert ((score >= 0.0) & (score <= 1.0)).all()
    assert forget_score(1.0 / ratio) == pytest.approx(forget_score(ratio))
