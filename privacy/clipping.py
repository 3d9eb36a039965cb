"""Clipping: bound the L2 norm of one client's whole update.

McMahan et al., "Learning Differentially Private Recurrent Language Models" (2018). Everything that follows
and needs a sensitivity (fixed point under masks, noise) takes it from here. The norm is fixed, or follows a
quantile of the clients' norms (Andrew et al., "Differentially Private Learning with Adaptive Clipping",
2021).

>>> import numpy as np
>>> clipped, metrics = clip(np.array([3.0, 4.0], dtype=np.float32), norm=1.0)
>>> metrics
{'norm': 5.0, 'clipped': 1.0}
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from privacy.config import Config
from privacy.contexts import ClientContext, Nominal, RoundContext
from privacy.errors import ClientUpdateError, PipelineError
from privacy.local import Metrics
from privacy.stage import Facts, Stage, Wire
from privacy.transport import Vector

NORM = "clip.norm"
"""Name under which the norm of the next round is kept."""


class ClipConfig(Config):
    """Bounds each client's update: scales it down to L2 norm ``norm`` where it is longer."""

    stage: Literal["clip"] = "clip"
    norm: float = Field(gt=0, description="L2 norm of the whole update; the first one with quantile")
    quantile: float | None = Field(
        default=None, gt=0, lt=1, description="share of clients to leave unclipped; the norm follows it"
    )
    learning_rate: float = Field(default=0.2, gt=0, description="how fast the norm follows, in nats a round")
    quantile_weight: float = Field(
        default=0.2,
        gt=0,
        le=2,
        description="length of the bit that says whether a client was clipped, in units of the norm",
    )


def l2_norm(vector: NDArray[Any]) -> float:
    """L2 norm in float64, the same to the bit on any number of threads (which BLAS does not promise)."""
    return math.sqrt(float(np.square(vector, dtype=np.float64).sum()))


def clip(vector: NDArray[np.float32], *, norm: float) -> tuple[NDArray[np.float32], Metrics]:
    """Scale ``vector`` (d,) to L2 norm at most ``norm``; returns (vector, {"norm", "clipped"}).

    *Guarantees.* The result's norm, computed in float64, is never above ``norm``: the scaled values are
    rounded towards zero, so no rounding can lift them. The direction changes by less than 2^-23 per
    coordinate. A vector within the bound is returned bit by bit as it was. The input is not changed.

    *Edge cases.*

    ==============  =================================================================
    zero vector     returned as it is, norm 0, not clipped
    NaN, infinity   `ClientUpdateError`: scaling cannot bound them
    empty vector    returned as it is, norm 0
    norm <= 0       ``ValueError``
    ==============  =================================================================
    """
    if not 0 < norm < float("inf"):
        raise ValueError(f"norm={norm} must be positive and finite")
    length = l2_norm(vector)
    if not np.isfinite(length):
        raise ClientUpdateError(
            "update holds NaN or infinity and cannot be clipped; drop this client's update"
        )
    if length <= norm:
        return vector.copy(), {"norm": length, "clipped": 0.0}
    exact = vector.astype(np.float64) * (norm / length * (1.0 - 1e-9))
    rounded = exact.astype(np.float32)
    lifted = np.abs(rounded.astype(np.float64)) > np.abs(exact)
    rounded[lifted] = np.nextafter(rounded[lifted], np.float32(0.0))
    return rounded, {"norm": length, "clipped": 1.0}


class ClipStage(Stage):
    """Turns an unbounded float wire into one bounded by ``norm``."""

    def __init__(self, config: ClipConfig) -> None:
        self.config = config

    @property
    def facts(self) -> Facts:
        return Facts(name="clip", place="update")

    def wire(self, incoming: Wire, nominal: Nominal) -> Wire:
        if incoming.kind != "float":
            raise PipelineError(
                "clip after secure_aggregation: masked integers have no norm; put clip before it"
            )
        if incoming.codec is not None:
            raise PipelineError("clip after compression undoes it; put clip before it")
        bound = incoming.l2_bound
        return replace(incoming, l2_bound=self.config.norm if bound is None else min(bound, self.config.norm))

    def client(self, update: Vector, context: ClientContext) -> tuple[Vector, Metrics]:
        clipped, metrics = clip(update.astype(np.float32), norm=self.config.norm)
        return clipped.astype(np.float64), metrics


class AdaptiveClipStage(Stage):
    """Clips to a norm that follows a quantile of the clients' norms, learned from what is released anyway.

    An update travels in units of the round's norm, with one coordinate more: plus or minus half of
    ``quantile_weight``, for clients that were within the norm or not. Whatever noise protects the update
    protects that bit, too, and the bound on the whole is ``sqrt(1 + quantile_weight^2 / 4)``; nothing else is
    released.

    *Guarantees.* With noise by a DP stage behind it, the norm is a function of private releases. Without one,
    it tells the share of clipped clients. Rounds with planned weights leave it as it is.
    """

    def __init__(self, config: ClipConfig) -> None:
        assert config.quantile is not None, "a clip without a quantile is a ClipStage"
        self.config, self.quantile = config, config.quantile

    @property
    def facts(self) -> Facts:
        words = "with a quantile reads the next norm off their sum (one without does not)"
        return Facts(name="clip", place="update", on_sum=words)

    def wire(self, incoming: Wire, nominal: Nominal) -> Wire:
        if incoming.kind != "float":
            raise PipelineError("clip takes updates as they are; put it before whatever encodes them")
        if incoming.codec is not None:
            raise PipelineError("clip after compression undoes it; put clip before it")
        if incoming.l2_bound is not None:
            raise PipelineError("clip with a quantile must come first: updates are bounded already")
        size = incoming.dimension
        return Wire(
            kind="float",
            l2_bound=math.hypot(1.0, self.config.quantile_weight / 2),
            dimension=None if size is None else size + 1,
            min_cohort=incoming.min_cohort,
            extra=1,
        )

    def norm(self, context: RoundContext | ClientContext) -> float:
        """The norm to which this round clips."""
        return context.state.get(NORM, self.config.norm)

    def client(self, update: Vector, context: ClientContext) -> tuple[Vector, Metrics]:
        norm = self.norm(context)
        clipped, metrics = clip((update / norm).astype(np.float32), norm=1.0)
        bit = self.config.quantile_weight * (0.5 - metrics["clipped"])
        return np.append(clipped.astype(np.float64), bit), {**metrics, "norm": metrics["norm"] * norm}

    def server(self, update: Vector, context: RoundContext) -> tuple[Vector, Metrics]:
        return update[:-1] * self.norm(context), {"norm": self.norm(context)}

    def next_state(self, update: Vector, context: RoundContext) -> dict[str, float]:
        norm = self.norm(context)
        if context.planned_weights is not None:
            return {NORM: norm}
        within = min(max(float(update[-1]) / self.config.quantile_weight + 0.5, 0.0), 1.0)
        return {NORM: norm * math.exp(-self.config.learning_rate * (within - self.quantile))}
