"""Clipping, adding up and noise, on matrices of per-sample gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.dp_sgd import DenseGradients
from privacy.dp_sgd import clip_and_sum as clip_and_sum_of


def clip_and_sum(grads, counts, *, clip_norm):
    return clip_and_sum_of(DenseGradients(grads, counts), counts, clip_norm=clip_norm)


def test_two_clients_by_hand() -> None:
    grads = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 2.0]])
    sums, metrics = clip_and_sum(grads, [2, 1], clip_norm=1.0)
    torch.testing.assert_close(sums, torch.tensor([[0.9, 1.2], [0.0, 1.0]]), rtol=1e-5, atol=0)
    assert metrics[0] == {"batch_size": 2.0, "clipped": 0.5, "non_finite": 0.0}
    assert metrics[1] == {"batch_size": 1.0, "clipped": 1.0, "non_finite": 0.0}


def test_a_client_without_samples_gets_zeros() -> None:
    sums, metrics = clip_and_sum(torch.ones(1, 3), [0, 1, 0], clip_norm=9.0)
    assert sums.tolist() == [[0.0] * 3, [1.0] * 3, [0.0] * 3]
    assert [m["batch_size"] for m in metrics] == [0.0, 1.0, 0.0]
    assert clip_and_sum(torch.zeros(0, 3), [0, 0], clip_norm=1.0)[0].shape == (2, 3)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=4),
    st.floats(1e-3, 1e3),
    st.floats(1e-4, 1e4),
    st.integers(0, 2**31),
)
def test_one_sample_moves_its_own_clients_sum_by_at_most_the_clip_norm(counts, clip_norm, scale, seed):
    grads = torch.randn(sum(counts), 7, generator=torch.Generator().manual_seed(seed)) * scale
    whole, _ = clip_and_sum(grads, counts, clip_norm=clip_norm)
    for client, (own, total) in enumerate(zip(grads.split(counts), whole, strict=True)):
        parts = [clip_and_sum(row[None], [1], clip_norm=clip_norm)[0][0] for row in own]
        assert all(float(part.double().norm()) <= clip_norm for part in parts)
        expected = torch.stack(parts).sum(0) if parts else torch.zeros(7)
        torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5 * clip_norm)
        alone, _ = clip_and_sum(own, [counts[client]], clip_norm=clip_norm)
        assert torch.equal(alone[0], total)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_sample_with_a_broken_gradient_counts_as_zero(bad: float) -> None:
    sums, metrics = clip_and_sum(torch.tensor([[bad, 1.0], [0.25, 0.0]]), [2], clip_norm=1.0)
    assert sums.tolist() == [[0.25, 0.0]]
    assert metrics[0]["non_finite"] == 1.0
