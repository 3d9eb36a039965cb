"""One update that outweighs the others: what counts as that, and what is said of it."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedsim.evidence.outweighing import outweighing_rows, outweighing_sentences
from fedsim.federation.influence import heaviest

vectors = st.lists(st.lists(st.floats(-100, 100), min_size=4, max_size=4), min_size=3, max_size=6)


@given(vectors)
def test_whoever_outweighs_the_others_turns_the_sum_its_way(drawn) -> None:
    """|others| < |u| gives <u + others, u> > 0; nobody else can be the heaviest."""
    updates = np.array(drawn)
    lengths = {client: float(np.linalg.norm(update)) for client, update in enumerate(updates)}
    found = heaviest(lengths)
    if found is None:
        longest = max(lengths.values())
        assert longest <= math.fsum(lengths.values()) - longest + 1e-9
    else:
        assert updates.sum(axis=0) @ updates[found.client] > 0
        assert found.times > 1


def test_two_clients_or_zeros_say_nothing() -> None:
    assert heaviest({1: 5.0, 2: 1.0}) is None
    assert heaviest({1: 0.0, 2: 0.0, 3: 0.0}) is None
    alone = heaviest({1: 0.0, 2: 2.0, 3: 0.0})
    assert alone is not None
    assert (alone.client, alone.times) == (2, math.inf)


def test_a_line_for_a_variant() -> None:
    def event(round_: int, client: int, times: float | None, kind: str = "update_outweighs"):
        return {
            "kind": kind,
            "variant": "base",
            "seed": 1,
            "branch": "keep",
            "round": round_,
            "client": client,
            "name": f"c{client}",
            "times": times,
        }

    rows = outweighing_rows(
        [
            event(3, 4, 8.0),
            event(2, 4, 1.5),
            event(2, 4, 1.5),
            event(5, 6, 2.0),
            event(1, 1, None, "client_failed"),
        ]
    )
    assert [(row["client"], row["rounds"], row["first"], row["times"]) for row in rows] == [
        (4, 2, 2, 8.0),
        (6, 1, 5, 2.0),
    ]
    assert outweighing_sentences(rows) == [
        "keep: client c4's update outweighed all others' in 2 rounds, first in round 2, up to 8 times "
        "as long as theirs together; 1 other client did so, too. Clip updates, or set "
        "federation.max_update_norm."
    ]
    assert "sent nothing" in outweighing_sentences(outweighing_rows([event(1, 2, None)]))[0]
