"""Partitions: each record once, deterministic, and nobody moves when another record goes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.data.authors import author_records
from fedsim.data.partition import by_subject, dirichlet, iid

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
