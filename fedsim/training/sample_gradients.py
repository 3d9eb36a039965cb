"""Gradients of single records, from one pass over many clients' records, without ever holding them all.

DP-SGD needs the norm of each record's gradient and then one weighted sum a client. A layer's gradient for a
record is the product of what came back and what went in at that record's places. While the backward pass goes
by, each layer's products give norms and are dropped; what went in and came back is kept, and the sums are one
more product with the records' weights in it. Bu et al., "Differentially Private Optimization on Large Model
at Small Cost" (2023), call it book-keeping. Legend: R records, K clients, P places, T positions of the
longest record, D trained parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.model.blocks import products
from fedsim.model.packing import Packing, Padded
from privacy import sample_norms


@dataclass(kw_only=True)
class LayeredGradients:
    """Filled by the backward pass of adapted layers (``stacked``); see ``privacy.SampleGradients``.

    ``names`` are the trained parameters in order; ``clients`` says which rows of the sums the layout's groups
    are, of ``total``.
    """

    names: Sequence[str]
    layout: Packing | Padded
    clients: NDArray[np.int64]
    total: int
    _pairs: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    _squares: list[torch.Tensor] = field(default_factory=list)

    def add(self, name: str, left_PO: torch.Tensor, right_PI: torch.Tensor) -> None:
        """A parameter whose gradient is the sum of ``left' right`` over a record's places.

        Raises:
            ValueError: it was given before; its gradient would be a sum of two products.
        """
        if name in self._pairs:
            raise ValueError(f"{name} is used twice in a pass; its clients must train one at a time")
        self._pairs[name] = (left_PO.detach(), right_PI.detach())
        narrow, wide = sorted(self._pairs[name], key=lambda side: side.shape[-1])
        by_record = torch.bmm(self.layout.only_own(self.layout.apart(narrow)).mT, self.layout.apart(wide))
        self._squares.append(sample_norms(by_record.flatten(1)).square())

    def norms(self) -> torch.Tensor:
        """L2 norm of each record's whole gradient, (R,), in fp64."""
        return torch.stack(self._squares).sum(0).sqrt()

    @torch.no_grad()
    def sums(self, factors_R: torch.Tensor) -> torch.Tensor:
        """Each client's sum of factor times gradient, (K, D); a record of factor 0 has no part in it."""
        factors_P1 = self.layout.spread(factors_R)[:, None]
        left_out = bool((factors_R == 0).any())
        parts = []
        for name in self.names:
            left_PO, right_PI = self._pairs[name]
            if left_out:  # its products may not be finite
                left_PO, right_PI = (torch.where(factors_P1 == 0, 0.0, side) for side in (left_PO, right_PI))
            if left_PO.shape[-1] < right_PI.shape[-1]:
                left_PO = left_PO * factors_P1.to(left_PO.dtype)
            else:
                right_PI = right_PI * factors_P1.to(right_PI.dtype)
            parts.append(products(left_PO, right_PI, self.layout.blocks).flatten(1))
        sums_KD = parts[0].new_zeros(self.total, sum(part.shape[1] for part in parts))
        sums_KD[self.clients] = torch.cat(parts, dim=1)
        return sums_KD
