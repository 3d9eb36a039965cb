"""One attempt of a round played through in one place.

All parties are at hand: for attacks and audits.

>>> import numpy as np
>>> from privacy import ClientContext, Pipeline, RoundContext
>>> pipeline, here = Pipeline(), dict(round_id=1, branch="main")
>>> server = pipeline.open_round(RoundContext(cohort=("a",), **here))
>>> client = pipeline.client(ClientContext(client="a", **here))
>>> sent, answers = rehearse(server, {"a": client}, {"a": np.float32([1.0, 2.0])})
>>> sent["a"].array.tolist(), server.aggregate(answers).update.tolist()
([1.0, 2.0], [1.0, 2.0])
"""

from __future__ import annotations

from collections.abc import Mapping

from privacy.parties import ClientParty, ServerRound
from privacy.transport import Payload, Update


def rehearse(
    server: ServerRound, parties: Mapping[str, ClientParty], updates: Mapping[str, Update]
) -> tuple[dict[str, Payload], dict[str, bytes]]:
    """Have every party send its update, and 0 for each declared metric.

    Gives what they sent, and their answers, with which the server can aggregate.
    """
    adverts = {name: party.advertise() for name, party in parties.items()}
    deliveries: Mapping[str, bytes] = {}
    if any(adverts.values()):
        roster = server.collect(adverts)
        deliveries = server.deliver({name: party.share(roster) for name, party in parties.items()})
    sent = {
        name: party.prepare(
            updates[name],
            metrics={metric.name: 0.0 for metric in party.nominal.metrics},
            delivery=deliveries.get(name, b""),
        ).payload
        for name, party in parties.items()
    }
    requests = server.receive(sent)
    return sent, {name: parties[name].unmask(request) for name, request in requests.items()}
