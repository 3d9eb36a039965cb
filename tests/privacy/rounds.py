"""Driving one round of a pipeline with in-memory parties, any of which may fall silent at any step."""

import hashlib

import numpy as np

from privacy.clipping import ClipConfig, ClipStage
from privacy.contexts import ClientContext, Nominal, RoundContext
from privacy.pipeline import Pipeline
from privacy.secagg import SecureAggregationConfig, SecureAggregationStage

HERE = {"round_id": 3, "branch": "main", "attempt": 0}
STAGES = ("before_keys", "after_keys", "after_shares", "after_masking", "during_unmasking")


def secret(*keys):
    return hashlib.sha256(repr(keys).encode()).digest()


def plain_pipeline(stages=(), *, weighting="uniform", **nominal):
    return Pipeline(stages, nominal=Nominal(**nominal), weighting=weighting)


def masked_pipeline(*, norm=1.0, max_cohort=8, max_weight=1.0, threshold=0.6, neighbours=None, **rest):
    config = SecureAggregationConfig(threshold=threshold, neighbours=neighbours)
    stages = [ClipStage(ClipConfig(norm=norm)), SecureAggregationStage(config)]
    return plain_pipeline(stages, max_cohort=max_cohort, max_weight=max_weight, **rest)


def random_updates(count, size, *, seed=0, scale=0.05):
    rng = np.random.default_rng(seed)
    return {f"c{i:03d}": rng.normal(0, scale, size).astype(np.float32) for i in range(count)}


class Round:
    """One attempt: every client is rebuilt from its memory for every message.

    ``drops`` names the step at which a client falls silent. Each step can be run on its own, so that a test
    may tamper with what passes between.
    """

    def __init__(
        self,
        pipeline,
        updates,
        *,
        weights=None,
        metrics=None,
        planned=None,
        normalise=True,
        here=None,
        drops=None,
        generators=None,
    ):
        self.pipeline, self.updates, self.here = pipeline, updates, here or HERE
        self.weights, self.metrics, self.planned = weights, metrics, planned
        self.drops, self.generators = drops or {}, generators or {}
        self.server = pipeline.open_round(
            RoundContext(cohort=list(updates), planned_weights=planned, **self.here), normalise=normalise
        )
        self.memory = {}

    def client(self, name):
        return self.pipeline.client(
            ClientContext(
                client=name,
                secret=secret(name, *self.here.values()),
                memory=self.memory.get(name, b""),
                planned_weight=None if self.planned is None else self.planned[name],
                generator=self.generators.get(name),
                **self.here,
            )
        )

    def here_at(self, step):
        """Who has not fallen silent by a step."""
        return [n for n in self.updates if n not in self.drops or STAGES.index(self.drops[n]) > step]

    def say(self, name, what):
        party = self.client(name)
        said = what(party)
        self.memory[name] = party.memory
        return said

    def adverts(self):
        return {name: self.say(name, lambda party: party.advertise()) for name in self.here_at(0)}

    def shares(self, broadcast):
        there = [n for n in self.here_at(1) if n in self.memory and n not in self.server.rejected]
        return {name: self.say(name, lambda party: party.share(broadcast)) for name in there}

    def payloads(self, deliveries):
        there = [n for n in self.here_at(2) if not self.pipeline.interactive or n in deliveries]
        prepared = {}
        for name in there:
            prepared[name] = self.say(name, lambda party, name=name: self.prepare(party, name, deliveries))
        return {name: payload for name, payload in prepared.items() if name in self.here_at(3)}

    def prepare(self, party, name, deliveries):
        return party.prepare(
            self.updates[name],
            weight=1.0 if self.weights is None else self.weights[name],
            metrics=None if self.metrics is None else self.metrics[name],
            delivery=deliveries.get(name, b""),
        ).payload

    def answers(self, requests):
        there = [n for n in self.here_at(4) if n in requests]
        return {name: self.say(name, lambda party, name=name: party.unmask(requests[name])) for name in there}

    def delivered(self):
        """Run the first two steps; what the clients get before they mask."""
        if not self.pipeline.interactive:
            return {}
        return self.server.deliver(self.shares(self.server.collect(self.adverts())))

    def received(self):
        """Run the first three steps; what the clients are asked at the end."""
        return self.server.receive(self.payloads(self.delivered()))

    def result(self):
        return self.server.aggregate(self.answers(self.received()))


def run_round(pipeline, updates, **rest):
    return Round(pipeline, updates, **rest).result()


def weighted_mean(updates, weights):
    total = sum(updates[n].astype(np.float64) * weights[n] for n in sorted(updates))
    return total / sum(weights.values())
