"""What a federated algorithm adds to each step of local training, to keep clients from drifting apart."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


class Drift(Protocol):
    """A term of the local loss that looks at parameters alone.

    K clients that train side by side, D parameters.
    """

    @property
    def kind(self) -> Hashable:
        """Clients whose drifts are of one kind may train side by side."""
        ...

    def beside(self, others: Sequence[Drift]) -> Drift:
        """The drift of K clients side by side: this one's and those of ``others``, all of its kind."""
        ...

    def gradient(self, now_KD: torch.Tensor, start_KD: torch.Tensor) -> torch.Tensor:
        """What is added to a step's gradient, (K, D), given where clients are and where they started.

        Fewer clients than stand side by side are the first of them.
        """
        ...

    def penalty(self, update_D: NDArray[np.float32]) -> float:
        """The term itself, for training without gradients, at one client's update from the start."""
        ...


@dataclass(frozen=True)
class Proximal:
    """``mu / 2 |w - w_start|^2`` (FedProx; Li et al., 2020, arXiv:1812.06127)."""

    mu: float

    @property
    def kind(self) -> Hashable:
        """Equal weights pull alike."""
        return self

    def beside(self, others: Sequence[Drift]) -> Drift:
        """The same for all."""
        return self

    def gradient(self, now_KD: torch.Tensor, start_KD: torch.Tensor) -> torch.Tensor:
        """``mu (w - w_start)``."""
        return self.mu * (now_KD - start_KD)

    def penalty(self, update_D: NDArray[np.float32]) -> float:
        """``mu / 2 |u|^2``."""
        return self.mu / 2 * float(np.square(update_D, dtype=np.float64).sum())


@dataclass(frozen=True, eq=False)
class Correction:
    """``<offset, w>``: a vector of the client's own is added to each of its gradients."""

    offset_KD: NDArray[np.float32]

    @property
    def kind(self) -> Hashable:
        """All corrections."""
        return Correction

    def beside(self, others: Sequence[Drift]) -> Drift:
        """Each client with its own vector."""
        theirs = [other.offset_KD for other in others if isinstance(other, Correction)]
        return Correction(np.concatenate([self.offset_KD, *theirs]))

    def gradient(self, now_KD: torch.Tensor, start_KD: torch.Tensor) -> torch.Tensor:
        """The clients' vectors."""
        import torch

        return torch.from_numpy(self.offset_KD[: len(now_KD)]).to(now_KD)

    def penalty(self, update_D: NDArray[np.float32]) -> float:
        """``<offset, u>``."""
        return float(self.offset_KD[0].astype(np.float64) @ update_D.astype(np.float64))
