"""What clients tell the server of their losses: a metric of the privacy pipeline, beside the update.

A loss says something about records. So it is told only where the server sees each client's update anyway and
no stage promises differential privacy: noise does not account for it, and in a masked sum of few clients it
would lie bare.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fedsim.federation.runtime import ClientFailedError
from privacy import Capability, Metric, Pipeline, ViewError, require

TOLD = Metric(name="loss", bound=32.0)
"""The mean of a client's local losses, in nats per token for losses that are likelihoods."""


def may_be_told(pipeline: Pipeline) -> bool:
    """Whether clients of this pipeline may tell their losses."""
    return pipeline.reveals == "individual" and not pipeline.protects


def require_told(pipeline: Pipeline, *, method: str) -> None:
    """`ViewError` if clients of this pipeline may not tell their losses."""
    require(pipeline, {Capability.INDIVIDUAL_WEIGHTS}, method=method)
    for fact in pipeline.facts:
        if fact.charges is not None:
            raise ViewError(
                f"{method} has clients tell their losses, for which {fact.name} does not account; leave one "
                "of the two out"
            )


def telling(pipeline: Pipeline, loss: float | None) -> dict[str, float]:
    """The metrics beside a client's update: its loss, or 0 where it is not asked (None).

    Raises:
        ClientFailedError: it is asked, and the pipeline does not let it tell.
    """
    declared = TOLD in pipeline.nominal.metrics
    if loss is not None and not declared:
        raise ClientFailedError("is asked for its loss, which this privacy pipeline does not let it tell")
    return {TOLD.name: loss or 0.0} if declared else {}


def told(metrics: Mapping[str, float], contributors: Iterable[int], asked: Iterable[int]) -> float | None:
    """The mean loss of the contributors that were asked for theirs, from the mean over all of them.

    None if there was nobody.
    """
    here = set(contributors)
    tellers = here.intersection(asked)
    return metrics[TOLD.name] * len(here) / len(tellers) if tellers else None
