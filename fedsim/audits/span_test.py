"""The test whether what enters a block's attention can have been in the batch behind a gradient.

Legend: N sequences, T positions, E width of the input, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.audits.attention_inputs import Site, attention_inputs
from fedsim.audits.spans import Float64, Span
from fedsim.model.adapter import AdapterModel
from fedsim.model.vectors import Arrays

Factor = Literal["A", "B"]

CONTRAST = 0.1
"""The largest residual that may fit, as a share of what the vocabulary leaves on average."""
FORWARD_ROUNDING = 8.0
"""Error of a hidden state, in units of the base's machine precision."""
SAME = 1e-4
"""Relative distance up to which two inputs are one."""


@dataclass(frozen=True, kw_only=True)
class Membership:
    """Compares what inputs leave outside a gradient's span with what they are allowed to leave.

    ``projection_RE`` comes before the span: the layer's A, when the gradient is that of B. ``limit`` is the
    largest residual that may fit, whatever the rounding; ``capacity`` the largest rank that there could be.
    """

    model: AdapterModel
    site: Site
    span: Span
    capacity: int
    projection_RE: Float64 | None
    tolerance: float
    limit: float = 1.0

    @classmethod
    def of(
        cls, model: AdapterModel, site: Site, gradients: Arrays, *, factor: Factor, tolerance: float
    ) -> Membership:
        """From the gradients of one factor, under the loaded adapter.

        The rows of A's gradients share a span over the layers with the same input; those of B's do not, since
        each layer has an A of its own: there it is the layer of the values alone.
        """
        named = {layer: f"{layer}.lora_{factor}.default.weight" for layer in site.layers}
        layers = [layer for layer in site.layers if named[layer] in gradients]
        matrices = [gradients[named[layer]] for layer in (layers if factor == "A" else layers[:1])]
        span = Span.of(np.concatenate(matrices))
        test = cls(
            model=model,
            site=site,
            span=span,
            capacity=min(sum(len(matrix) for matrix in matrices), len(span.basis_ED)),
            projection_RE=site.factor(model, site.value, "A") if factor == "B" else None,
            tolerance=tolerance,
        )
        if not span.tells:
            return test
        residuals_V = span.residuals(test.inputs(test.vocabulary))
        return replace(test, limit=CONTRAST * float(residuals_V.mean()))

    @property
    def vocabulary(self) -> NDArray[np.int64]:
        """Every token as a sequence of one."""
        module: Any = self.model.module
        return np.arange(len(module.get_input_embeddings().weight), dtype=np.int64)[:, None]

    @property
    def most_positions(self) -> int:
        """How long a sequence can be: its positions are independent directions of a later block's span."""
        module: Any = self.model.module
        return max(1, min(self.span.rank, int(module.config.max_position_embeddings)))

    def inputs(self, ids_NT: NDArray[np.int64], *, first_position: int = 0) -> Float64:
        """What the gradient's rows are made of, at sequences' last positions: (N, E), or (N, r) behind A."""
        x_NE = attention_inputs(self.model, self.site, ids_NT, first_position=first_position)
        return x_NE if self.projection_RE is None else x_NE @ self.projection_RE.T

    def excess(self, x_NE: Float64) -> Float64:
        """The residuals of inputs over what is allowed, (N,); up to 1 they fit."""
        dtype = next(self.model.module.parameters()).dtype
        forward = FORWARD_ROUNDING * torch.finfo(dtype).eps
        allowed_N = self.tolerance * np.hypot(self.span.rounding(x_NE), forward)
        excess_N: Float64 = self.span.residuals(x_NE) / np.minimum(allowed_N, self.limit)
        return excess_N

    def depends_on_position(self) -> bool:
        """Whether a token alone enters the attention differently one position further right."""
        here, there = (self.inputs(self.vocabulary[:8], first_position=position) for position in (0, 1))
        return not same_input(here, there).all()


def same_input(left_NE: Float64, right_NE: Float64) -> NDArray[np.bool_]:
    """Which rows are equal up to what a forward pass in fp32 or less rounds, (N,)."""
    apart_N = np.linalg.norm(left_NE - right_NE, axis=-1)
    close_N: NDArray[np.bool_] = apart_N <= SAME * np.linalg.norm(right_NE, axis=-1)
    return close_N
