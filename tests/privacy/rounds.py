"""Driving one round of a pipeline with in-memory parties."""

import hashlib

import numpy as np

from privacy.clipping import ClipConfig, ClipStage
from privacy.pipeline import Pipeline
from privacy.secagg import SecureAggregationConfig, SecureAggregationStage

HERE = {"round_id": 3, "branch": "main", "attempt": 0}


def secret(*keys):
    return hashlib.sha256(repr(keys).encode()).digest()


def masked_pipeline(*, norm=1.0, max_cohort=8, max_weight=1.0, **rest):
    stages = [ClipStage(ClipConfig(norm=norm)), SecureAggregationStage(SecureAggregationConfig())]
    return Pipeline(stages, max_cohort=max_cohort, max_weight=max_weight, **rest)


def random_updates(count, size, *, seed=0, scale=0.05):
    rng = np.random.default_rng(seed)
    return {f"c{i:03d}": rng.normal(0, scale, size).astype(np.float32) for i in range(count)}


def payloads_of(pipeline, server, updates, *, weights=None, metrics=None, planned=None, here=HERE):
    """Two fresh client objects per client: one advertises, one (rebuilt from the secret) prepares."""
    keys = {name: secret(name, *here.values()) for name in updates}
    adverts = {n: pipeline.client(n, secret=keys[n], **here).advertise() for n in updates}
    broadcast = server.collect(adverts) if pipeline.interactive else b""
    return {
        name: pipeline.client(
            name, secret=keys[name], planned_weight=None if planned is None else planned[name], **here
        )
        .prepare(
            update,
            weight=1.0 if weights is None else weights[name],
            metrics=None if metrics is None else metrics[name],
            broadcast=broadcast,
        )
        .payload
        for name, update in updates.items()
    }


def run_round(pipeline, updates, *, weights=None, metrics=None, planned=None, normalise=True, here=HERE):
    server = pipeline.open_round(cohort=list(updates), planned_weights=planned, normalise=normalise, **here)
    return server.aggregate(
        payloads_of(pipeline, server, updates, weights=weights, metrics=metrics, planned=planned, here=here)
    )


def weighted_mean(updates, weights):
    total = sum(updates[n].astype(np.float64) * weights[n] for n in sorted(updates))
    return total / sum(weights.values())
