"""Compression: what a client sends in fewer bytes, by one of three methods.

*Ternary*: Yadav et al., "ComPEFT: Compression for Communicating Parameter Efficient Updates via
Sparsification and Quantization" (2023, arXiv:2311.13171): the signs of the largest coordinates, all of one
size, ``alpha`` times the standard deviation of the whole update. *Top-k*: the largest coordinates as they
are. *Quantise*: every coordinate on a grid, rounded at random so that the mean stays; Alistarh et al., "QSGD"
(2017). The loss happens in the `client` hook, so that every later stage and the server work with the same
vector; a codec packs it without further loss where it travels in the clear. Suffix: D coordinates.

>>> import numpy as np
>>> ternary(np.float32([4.0, -4.0, 0.5, -0.5]), density=0.5).round(2).tolist()
[2.8499999046325684, -2.8499999046325684, 0.0, 0.0]
>>> top_k(np.float32([3.0, -4.0, 0.5, 0.1]), density=0.25).tolist()
[0.0, -4.0, 0.0, 0.0]
>>> quantise(np.float32([0.5, 0.0]), bits=2, step=1.0, generator=np.random.default_rng(0)).tolist()
[0.0, 0.0]
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from privacy.codecs import GridCodec, SignCodec, ValueCodec, Values, kept, levels
from privacy.config import Config
from privacy.contexts import ClientContext, Nominal
from privacy.errors import ClientUpdateError, PipelineError
from privacy.local import Metrics
from privacy.stage import Facts, Stage, Wire
from privacy.transport import Codec, Update, Vector

Method = Literal["ternary", "top_k", "quantise"]

OWN: dict[Method, tuple[str, ...]] = {
    "ternary": ("density", "alpha"),
    "top_k": ("density", "values"),
    "quantise": ("bits",),
}
"""The options that each method takes."""
SLACK = 1e-9
"""Relative room for rounding in float64 sums."""


class CompressionConfig(Config):
    """Sends updates in fewer bytes: signs of the largest entries, these entries, or few bits."""

    stage: Literal["compression"] = "compression"
    method: Method = Field(default="ternary", description="what is kept of an update")
    density: float = Field(default=0.2, gt=0, le=1, description="ternary, top_k: share of coordinates sent")
    alpha: float = Field(
        default=1.0,
        gt=0,
        description="ternary: size of what is sent, in standard deviations of the update",
    )
    values: Values = Field(default="float32", description="top_k: precision of what is sent")
    bits: int = Field(default=8, ge=1, le=8, description="quantise: bits a coordinate")

    @model_validator(mode="after")
    def _own_options(self) -> Self:
        options = {name for names in OWN.values() for name in names} - set(OWN[self.method])
        foreign = [name for name in sorted(options) if getattr(self, name) != _default(name)]
        if foreign:
            raise ValueError(
                f"method={self.method!r} does not take {' and '.join(foreign)}; it takes "
                f"{', '.join(OWN[self.method])}"
            )
        return self


def _default(name: str) -> object:
    return CompressionConfig.model_fields[name].default


def ternary(vector_D: Update, *, density: float, alpha: float = 1.0) -> Update:
    """The signs of the largest `kept` coordinates times one size, +0.0 elsewhere.

    *Guarantees.* Let k of d coordinates be kept and s be the (population) standard deviation of all. Since
    d s^2 = |x|^2 - d mean^2 <= |x|^2, the result's norm, alpha s sqrt(k), is at most alpha sqrt(k/d) |x|. The
    size is rounded towards zero, so that fp32 does not lift it.

    *Edge cases.* A vector whose entries are all equal, a single one too, has no deviation: the result is
    zero, as in the paper. Zeros are not sent, be there fewer than k others. Ties: the first ones are kept.
    """
    size = alpha * float(np.std(_finite(vector_D), dtype=np.float64)) * (1 - SLACK)
    with np.errstate(over="ignore"):
        rounded = np.float32(size)
    if not np.isfinite(rounded):
        raise ClientUpdateError(f"alpha={alpha} times the update's standard deviation leaves fp32")
    if float(rounded) > size:
        rounded = np.nextafter(rounded, np.float32(0.0))
    sent_D = _largest(vector_D, kept(vector_D.size, density))
    return np.where(sent_D, np.sign(vector_D) * rounded, np.float32(0.0)) + np.float32(0.0)


def top_k(vector_D: Update, *, density: float, values: Values = "float32") -> Update:
    """The largest `kept` coordinates in the given precision, +0.0 elsewhere.

    *Guarantees.* No coordinate grows, so no norm does: fp16 rounds towards zero.

    *Edge cases.* Beyond fp16's range, its largest number; below its smallest, zero. Ties: the first ones.
    """
    sent_D = _largest(_finite(vector_D), kept(vector_D.size, density))
    taken_D = vector_D
    if values == "float16":
        with np.errstate(over="ignore"):
            half_D = vector_D.astype(np.float16)
        lifted_D = np.abs(half_D.astype(np.float64)) > np.abs(vector_D.astype(np.float64))
        half_D[lifted_D] = np.nextafter(half_D[lifted_D], np.float16(0.0))
        taken_D = half_D.astype(np.float32)
    return np.where(sent_D, taken_D, np.float32(0.0)) + np.float32(0.0)


def quantise(vector_D: Update, *, bits: int, step: float, generator: np.random.Generator) -> Update:
    """Each coordinate to one of its neighbours among 0, +-step, ..., at most `levels` steps; +-step in 1 bit.

    *Guarantees.* Unbiased: the expectation of each coordinate is itself, for a ``step`` from `coarse_step`
    without any error of fp32. None moves by a step or more (two with 1 bit).

    *Edge cases.* A zero stays zero but with 1 bit. Coordinates beyond the grid: `ClientUpdateError`.
    """
    most = levels(bits)
    if not np.abs(_finite(vector_D)).max(initial=0.0) <= most * step < math.inf:
        raise ClientUpdateError(f"the update leaves the grid of {most} steps of {step}")
    if step == 0:
        return np.zeros(vector_D.size, dtype=np.float32)
    width = 2.0 if bits == 1 else 1.0
    scaled_D = (vector_D.astype(np.float64) / step + most) / width
    low_D = np.floor(scaled_D)
    up_D = generator.random(vector_D.size) < scaled_D - low_D
    with np.errstate(over="ignore"):
        return (((low_D + up_D) * width - most) * step + 0.0).astype(np.float32)


def coarse_step(largest: float, bits: int) -> float:
    """The step of a grid that reaches ``largest``, rounded up to 16 significant bits.

    *Guarantees.* Every multiple of it on the grid is an fp32 number, but beyond fp32's range.
    """
    exact = largest / levels(bits)
    unit = max(math.ldexp(1.0, math.frexp(exact)[1] - 16), math.ldexp(1.0, -149))
    return math.ceil(exact / unit) * unit


def _finite(vector_D: Update) -> Update:
    if not np.isfinite(vector_D).all():
        raise ClientUpdateError("update holds NaN or infinity and cannot be compressed; drop it")
    return vector_D


def _largest(vector_D: Update, count: int) -> NDArray[np.bool_]:
    """Which ``count`` coordinates are largest by magnitude; of equal ones the first."""
    sizes_D = np.abs(vector_D)
    least = np.partition(sizes_D, vector_D.size - count)[vector_D.size - count]
    above_D: NDArray[np.bool_] = sizes_D > least
    above_D[np.flatnonzero(sizes_D == least)[: count - int(above_D.sum())]] = True
    return above_D


class CompressionStage(Stage):
    """Compresses at the client; the server works with what arrives.

    *Guarantees.* ``wire`` gives the largest norm of what is sent, of updates of norm at most B and dimension
    d: alpha sqrt(k/d) B for ternary, where k coordinates are sent (see `ternary`); B for top_k; for quantise,
    where each coordinate may grow by a step s, min(B + s sqrt(d), m s sqrt(d)) with m the largest multiple,
    and exactly s sqrt(d) in 1 bit. That worst case grows with sqrt(d): noise behind a coarse grid costs
    dearly.

    *Edge cases.* A grid spans a public range if a clip stands before it, else the update's own largest
    coordinate, which tells something of it. Only a public grid may stand before masks. Without a known
    dimension, ternary's bound is alpha B, and quantise has none. Behind a clip that follows a quantile,
    ternary and top_k are refused: they would destroy its bit.
    """

    def __init__(self, config: CompressionConfig) -> None:
        self.config = config
        self._step: float | None = None

    @property
    def facts(self) -> Facts:
        return Facts(name="compression", place="update")

    def wire(self, incoming: Wire, nominal: Nominal) -> Wire:
        if incoming.extra and self.config.method != "quantise":
            raise PipelineError(
                f"compression by {self.config.method} behind a clip with a quantile would lose the bit that "
                "the norm follows; use method='quantise', or a clip without quantile"
            )
        bound = incoming.l2_bound
        self._step = None if bound is None else coarse_step(bound, self.config.bits)
        longest = None if incoming.longest is None else self._longest(incoming.longest, incoming.dimension)
        return replace(incoming, l2_bound=self._bound(incoming), longest=longest, codec=self._codec())

    def client(self, update: Vector, context: ClientContext) -> tuple[Vector, Metrics]:
        vector_D = update.astype(np.float32)
        sent_D = self._compressed(vector_D, context)
        error = float(np.square(sent_D.astype(np.float64) - vector_D).sum())
        length = float(np.square(vector_D, dtype=np.float64).sum())
        return sent_D.astype(np.float64), {"error": math.sqrt(error / length) if length else 0.0}

    def _compressed(self, vector_D: Update, context: ClientContext) -> Update:
        config = self.config
        match config.method:
            case "ternary":
                return ternary(vector_D, density=config.density, alpha=config.alpha)
            case "top_k":
                return top_k(vector_D, density=config.density, values=config.values)
            case "quantise":
                if context.generator is None:
                    raise ValueError("compression by quantise needs a generator; give one to the client")
                step = self._step
                if step is None:
                    step = coarse_step(float(np.abs(_finite(vector_D)).max(initial=0.0)), config.bits)
                return quantise(vector_D, bits=config.bits, step=step, generator=context.generator)

    def _codec(self) -> Codec:
        match self.config.method:
            case "ternary":
                return SignCodec(density=self.config.density)
            case "top_k":
                return ValueCodec(density=self.config.density, values=self.config.values)
            case "quantise":
                return GridCodec(bits=self.config.bits, step=self._step)

    def _longest(self, longest: float, size: int | None) -> float | None:
        """The same for what noise made longer, where a grid spans the vector's own largest coordinate."""
        match self.config.method:
            case "top_k":
                return longest
            case "ternary":
                return self.config.alpha * longest
            case "quantise":
                return None if size is None else longest * (1 + math.sqrt(size))

    def _bound(self, incoming: Wire) -> float | None:
        """Largest norm of what is sent, None if nothing bounds it."""
        bound, size = incoming.l2_bound, incoming.dimension
        if bound is None or self.config.method == "top_k":
            return bound
        if self.config.method == "ternary":
            share = 1.0 if size is None else kept(size, self.config.density) / size
            return self.config.alpha * math.sqrt(share) * bound
        if size is None or self._step is None:
            return None
        most = levels(self.config.bits) * self._step * math.sqrt(size)
        moved = most if self.config.bits == 1 else bound + self._step * math.sqrt(size)
        return min(moved, most) * (1 + SLACK)
