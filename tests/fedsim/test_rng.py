"""Keyed streams: an address decides the draw, and nothing else does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from fedsim.rng import ordering, stream, torch_stream, uniform, uniforms

keys = st.lists(st.one_of(st.integers(-(2**40), 2**40), st.text(max_size=8)), max_size=4)


def test_a_draw_by_hand() -> None:
    """The first 53 bits of blake2b over length-prefixed "i7" and "sa"."""
    import hashlib

    text = b"\x02\x00\x00\x00i7\x02\x00\x00\x00sa"
    first = int.from_bytes(hashlib.blake2b(text, digest_size=16).digest()[:8], "little")
    assert uniform(7, "a") == (first >> 11) / 2**53


@given(seed=st.integers(0, 2**31 - 1), address=keys)
def test_an_address_gives_the_same_draw_whatever_was_drawn_before(
    seed: int, address: list[int | str]
) -> None:
    before = stream(seed, *address).random(3)
    stream(seed, "other").random(100)
    torch.rand(1)
    np.testing.assert_array_equal(stream(seed, *address).random(3), before)
    assert 0.0 <= uniform(seed, *address) < 1.0


@given(seed=st.integers(0, 99), one=keys, two=keys)
def test_different_addresses_give_different_draws(
    seed: int, one: list[int | str], two: list[int | str]
) -> None:
    same = [(type(key), key) for key in one] == [(type(key), key) for key in two]
    assert (uniform(seed, *one) == uniform(seed, *two)) == same


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ((1, 2), (12,)),
        (("1",), (1,)),
        (("a", "b"), ("ab",)),
        (("a", ""), ("a",)),
        ((1, 2), (2, 1)),
        (("i1",), (1,)),
    ],
)
def test_keys_are_told_apart_by_type_and_place(
    one: tuple[int | str, ...], two: tuple[int | str, ...]
) -> None:
    assert uniform(0, *one) != uniform(0, *two)
    assert stream(0, *one).random() != stream(0, *two).random()
    assert not torch.equal(
        torch.rand(2, generator=torch_stream(0, *one)), torch.rand(2, generator=torch_stream(0, *two))
    )


def test_the_seed_is_a_key_of_its_own() -> None:
    assert uniform(1, 2) != uniform(2, 1)


def test_draws_are_uniform_over_rounds_and_clients() -> None:
    """Kolmogorov-Smirnov on 20,000 addresses; the square root of the same draws must fail."""
    draws = np.array(
        [uniform(1, "participation", round_, client) for round_ in range(200) for client in range(100)]
    )
    assert kstest(draws, "uniform").pvalue > 0.001
    assert kstest(np.sqrt(draws), "uniform").pvalue < 1e-6


def test_neighbouring_addresses_are_uncorrelated() -> None:
    """20,000 pairs: |r| stays below 4.5 / sqrt(n); half of one mixed into the other does not."""
    here = uniforms(1, "a", ids=range(20_000))
    there = uniforms(1, "a", ids=range(1, 20_001))
    bound = 4.5 / np.sqrt(20_000)
    assert abs(np.corrcoef(here, there)[0, 1]) < bound
    assert abs(np.corrcoef(here, 0.5 * here + there)[0, 1]) > bound


def test_streams_are_uniform_inside() -> None:
    draws = np.concatenate([stream(1, "noise", client).random(50) for client in range(200)])
    assert kstest(draws, "uniform").pvalue > 0.001


@given(ids=st.lists(st.integers(0, 99), unique=True, min_size=2), data=st.data())
def test_without_an_id_the_others_keep_their_order(ids: list[int], data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(ids))
    fewer = [each for each in ids if each != gone]
    full = [ids[position] for position in ordering(3, "batch", ids=ids)]
    assert sorted(full) == sorted(ids)
    assert [each for each in full if each != gone] == [fewer[p] for p in ordering(3, "batch", ids=fewer)]


def test_no_global_generator_is_touched() -> None:
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    stream(1, "a").random()
    torch.rand(3, generator=torch_stream(1, "a"))
    uniforms(1, "a", ids=[1, 2])
    assert torch.equal(torch.get_rng_state(), torch_before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002
