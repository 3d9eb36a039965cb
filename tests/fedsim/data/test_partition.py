"""Partitions: each record once, deterministic, and nobody moves when another record goes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.data.authors import author_records
from fedsim.data.partition import (
    by_subject,
    deal_dirichlet,
    deal_evenly,
    deal_iid,
    deal_shards,
    dirichlet,
    iid,
)

RECORDS = [record for index in range(12) for record in author_records("author", index)]

schemes = st.sampled_from([
    lambda records, seed: by_subject(records, subjects_per_client=5),
    lambda records, seed: iid(records, clients=4, seed=seed),
    lambda records, seed: dirichlet(records, clients=4, alpha=0.3, seed=seed),
    lambda records, seed: dirichlet(records, clients=4, alpha=0.3, seed=seed, over="relation"),
])  # fmt: skip


def where(clients):
    return {record.record_id: client for client, records in clients.items() for record in records}


def test_subjects_share_clients_in_order():
    clients = by_subject(RECORDS, subjects_per_client=5)
    subjects = {client: sorted({r.subject for r in records}) for client, records in clients.items()}
    assert subjects[0] == [f"author-{k:04d}" for k in range(5)]
    assert subjects[2] == ["author-0010", "author-0011"]


@settings(max_examples=40, deadline=None)
@given(scheme=schemes, seed=st.integers(0, 2**31))
def test_every_record_lands_in_exactly_one_client(scheme, seed):
    clients = scheme(RECORDS, seed)
    placed = [record.record_id for records in clients.values() for record in records]
    assert sorted(placed) == sorted(record.record_id for record in RECORDS)
    assert where(scheme(RECORDS, seed)) == where(clients)


@settings(max_examples=40, deadline=None)
@given(scheme=schemes, seed=st.integers(0, 2**31), gone=st.integers(0, len(RECORDS) - 1))
def test_removing_a_record_moves_no_other(scheme, seed, gone):
    before = where(scheme(RECORDS, seed))
    after = where(scheme(RECORDS[:gone] + RECORDS[gone + 1 :], seed))
    assert after == {key: client for key, client in before.items() if key != RECORDS[gone].record_id}


def largest_share(clients):
    return max(len(records) for records in clients.values()) / len(RECORDS)


def test_small_alpha_is_skewed_and_large_alpha_is_not():
    def mean_top_share(alpha):
        tops = []
        for seed in range(20):
            placed = where(dirichlet(RECORDS, clients=4, alpha=alpha, seed=seed))
            counts = np.bincount([placed[r.record_id] for r in RECORDS[:9]], minlength=4)
            tops.append(counts.max() / 9)
        return np.mean(tops)

    assert mean_top_share(0.05) > 0.85
    assert mean_top_share(100.0) < 0.6


def test_iid_is_even():
    # 108 records over 4 clients: 27 each, standard deviation 4.5; four of them.
    assert largest_share(iid(RECORDS, clients=4, seed=1)) < (27 + 18) / 108


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: by_subject(RECORDS, subjects_per_client=0), "subjects_per_client=0 .*>= 1"),
        (lambda: iid(RECORDS, clients=0, seed=1), "clients=0 .*>= 1"),
        (lambda: dirichlet(RECORDS, clients=2, alpha=0.0, seed=1), "alpha=0.0 .*> 0"),
        (lambda: dirichlet(RECORDS, clients=2, alpha=1.0, seed=1, over="name"), "'subject' or 'relation'"),
    ],
)
def test_errors_name_the_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()


IDS = [f"t:{n}" for n in range(60)]
LABELS = [f"l{n % 5}" for n in range(60)]


def dealt_in_shards(seed=1, clients=5, shards=2, ids=IDS, labels=LABELS):
    return deal_shards(ids, labels, clients=clients, shards_per_client=shards, seed=seed)


def test_shards_of_two_labels_by_hand():
    """Four rows of two labels in two shards: each client has one label whole."""
    dealt = deal_shards(["a", "b", "c", "d"], ["x", "y", "x", "y"], clients=2, shards_per_client=1, seed=1)
    assert dealt[0] == dealt[2] != dealt[1] == dealt[3]


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 20), st.integers(30, 60))
def test_shards_are_equal_and_hold_few_labels(clients, shards, seed, count):
    dealt = dealt_in_shards(seed, clients, shards, IDS[:count], LABELS[:count])
    sizes = np.bincount(dealt, minlength=clients)
    assert sizes.sum() == count
    assert sizes.max() - sizes.min() <= shards
    # A shard of n rows touches at most as many labels as fit side by side in the sorted rows.
    rows = -(-count // (clients * shards))
    most = shards * (1 + -(-rows // (count // 5)))
    for client in range(clients):
        assert len({label for label, owner in zip(LABELS, dealt, strict=False) if owner == client}) <= most


def test_shards_are_skewed_and_even_deals_are_not():
    def labels_of_a_client(dealt):
        return np.mean([len({x for x, who in zip(LABELS, dealt, strict=True) if who == c}) for c in range(5)])

    assert labels_of_a_client(dealt_in_shards(shards=1)) < 2.5
    assert labels_of_a_client(deal_evenly(IDS, clients=5, seed=1)) > 3.5  # the negative control


@pytest.mark.parametrize(
    "deal",
    [
        lambda ids, labels, seed: deal_iid(ids, clients=4, seed=seed),
        lambda ids, labels, seed: deal_evenly(ids, clients=4, seed=seed),
        lambda ids, labels, seed: deal_dirichlet(ids, labels, clients=4, alpha=0.5, seed=seed),
        lambda ids, labels, seed: deal_shards(ids, labels, clients=4, shards_per_client=2, seed=seed),
    ],
)
def test_who_gets_what_depends_on_seed_and_ids_and_not_on_their_order(deal):
    def owners(order, seed):
        return dict(
            zip(
                [IDS[k] for k in order],
                deal([IDS[k] for k in order], [LABELS[k] for k in order], seed),
                strict=True,
            )
        )

    there, back = range(60), range(59, -1, -1)
    assert owners(there, 1) == owners(back, 1)
    assert owners(there, 1) != owners(there, 2)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(0, 9))
def test_an_even_deal_is_even(clients, seed):
    sizes = np.bincount(deal_evenly(IDS, clients=clients, seed=seed), minlength=clients)
    assert sizes.max() - sizes.min() <= 1


def test_too_few_are_not_dealt():
    with pytest.raises(
        ValueError, match="60 rows cannot be cut into 62 shards, 2 for each of 31 clients; use 30"
    ):
        dealt_in_shards(clients=31)
    with pytest.raises(ValueError, match="60 cannot be dealt to 61 clients; use 60"):
        deal_evenly(IDS, clients=61, seed=1)
