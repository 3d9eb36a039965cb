"""Representation misdirection (RMU; Li et al., 2024, arXiv:2403.03218): scramble the forgotten, pin the rest.

At the forgetting client, what leaves one block is pulled to ``strength`` times a fixed random direction u
(uniform entries, normalised): the mean over answer tokens of (h - c u)^2. The other clients hold theirs where
it was at the request: (h - h_ref)^2. Deviations: tokens are those that predict the answer, not the whole
text; the whole adapter moves, not three layers. Known weakness: what stands behind the block is untouched,
and a short training brings the answers back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from fedsim.rng import torch_stream
from fedsim.training.objectives import Needs, Objective
from fedsim.unlearning.protocol import LossMethodConfig

if TYPE_CHECKING:
    import torch

    from fedsim.model.forward import Pass


@dataclass(frozen=True)
class Misdirected:
    """Mean squared distance of a block's output from ``strength`` times a random direction, per sample."""

    layer: int
    strength: float
    direction: int

    @property
    def needs(self) -> Needs:
        """The block's output."""
        return Needs(layer=self.layer)

    def __call__(self, current: Pass, reference: Pass | None) -> torch.Tensor:
        import torch

        assert current.hidden_NH is not None
        width = current.hidden_NH.shape[-1]
        unit_H = torch.rand(width, generator=torch_stream(self.direction, "rmu", width))
        aim_H = (self.strength * unit_H / unit_H.norm()).to(current.hidden_NH)
        return _mean_squares(current, current.hidden_NH - aim_H)


@dataclass(frozen=True)
class Pinned:
    """Mean squared distance of a block's output from what it was at the request, per sample."""

    layer: int

    @property
    def needs(self) -> Needs:
        """The block's output, now and at the request."""
        return Needs(reference=True, layer=self.layer)

    def __call__(self, current: Pass, reference: Pass | None) -> torch.Tensor:
        assert current.hidden_NH is not None
        assert reference is not None
        assert reference.hidden_NH is not None
        return _mean_squares(current, current.hidden_NH - reference.hidden_NH)


def _mean_squares(current: Pass, difference_NH: torch.Tensor) -> torch.Tensor:
    return current.token_means(difference_NH.float().square().mean(-1))


class Rmu(LossMethodConfig):
    """Misdirect a block's output at the forgetting client; the others pin theirs."""

    title: ClassVar[str] = "RMU"
    summary: ClassVar[str] = "pull a block's output to a random direction; the others hold theirs"

    method: Literal["rmu"] = "rmu"
    layer: int = -2
    """The block: from 0, or from the last one back with -1 (the paper: 7 of 32)."""
    strength: float = Field(default=2.0, gt=0)
    """Length of the direction that outputs are pulled to (c)."""
    direction: int = 0
    """Seed of the random direction."""
    pin: bool = True
    """Whether the retain term holds the block's output, as in the paper; else it is the ``retain`` loss."""

    def forget_objective(self) -> Objective:
        return Misdirected(self.layer, self.strength, self.direction)

    def retain_objective(self) -> Objective:
        return Pinned(self.layer) if self.pin else super().retain_objective()
