"""What a federated algorithm adds to each step of local training, to keep clients from drifting apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


class Drift(Protocol):
    """A term of the local loss that looks at parameters alone. Drifts that are equal do the same.

    K clients that train side by side, D parameters.
    """

    def gradient(self, now_KD: torch.Tensor, start_KD: torch.Tensor) -> torch.Tensor:
        """What is added to a step's gradient, (K, D), given where clients are and where they started."""
        ...

    def penalty(self, update_D: NDArray[np.float32]) -> float:
        """The term itself, for training without gradients, at an update from the start."""
        ...


@dataclass(frozen=True)
class Proximal:
    """``mu / 2 |w - w_start|^2`` (FedProx; Li et al., 2020, arXiv:1812.06127)."""

    mu: float

    def gradient(self, now_KD: torch.Tensor, start_KD: torch.Tensor) -> torch.Tensor:
        """``mu (w - w_start)``."""
        return self.mu * (now_KD - start_KD)

    def penalty(self, update_D: NDArray[np.float32]) -> float:
        """``mu / 2 |u|^2``."""
        return self.mu / 2 * float(np.square(update_D, dtype=np.float64).sum())
