"""How a stage may own local training: its loss reduction, its sampler, its noise.

>>> here = dict(client="a", round_id=1, branch="main", attempt=0)
>>> task = LocalTask(nominal_records=9, steps=2, planned_steps=8, **here)
>>> task.batch_size is None
True
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    from privacy.ledger import Ledger

Metrics = dict[str, float]


PerSampleLoss = Callable[[Any, NDArray[np.int64]], "torch.Tensor"]
"""(model, positions (B,)) -> losses (B,), each the mean over that sample's own tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalTask:
    """One local training of one client, as a local rule needs to know it; all numbers are public.

    ``nominal_records`` is the client's number of records fixed when it joined, not today's, so that
    removing a record changes neither the rate nor anybody's draw. ``steps`` is this training's number
    of steps; ``planned_steps`` the most this client will ever take, over all rounds. ``batch_size``
    is the expected one, used where the stage's configuration leaves it open.
    """

    client: str
    round_id: int
    branch: str
    attempt: int
    nominal_records: int
    steps: int
    planned_steps: int
    batch_size: float | None = None


class LocalSession(Protocol):
    """One opened local training."""

    def batch(self, uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
        """One draw in [0, 1) per record -> positions of this step's batch; possibly empty."""

    def gradients(
        self,
        model: torch.nn.Module,
        positions: NDArray[np.int64],
        per_sample_loss: PerSampleLoss,
        generator: torch.Generator,
    ) -> tuple[dict[str, torch.Tensor], Metrics]:
        """Gradients by parameter name, to hand to an optimiser, and metrics that stay at the client."""


class SampleGradients(Protocol):
    """What DP-SGD asks of the gradients of R samples of K clients; nothing else is made of them."""

    def norms(self) -> torch.Tensor:
        """L2 norm of each sample's whole gradient, (R,), in fp64."""

    def sums(self, factors_R: torch.Tensor) -> torch.Tensor:
        """Each client's sum of factor times gradient, (K, D); factor 0 leaves out what is not finite, too."""


class LocalRule(Protocol):
    """Owns loss reduction and sampling of local training."""

    def expected_batch(self, task: LocalTask) -> float:
        """Records that a step has on average."""

    def affordable(self, task: LocalTask, ledger: Ledger) -> bool:
        """Whether the whole training fits the client's budget. Changes nothing."""

    def open(self, task: LocalTask, ledger: Ledger) -> LocalSession:
        """Start a training; `BudgetExceededError` if it does not fit."""

    def privatise(
        self,
        sessions: Sequence[LocalSession],
        gradients: SampleGradients,
        counts: Sequence[int],
        generators: Sequence[torch.Generator],
    ) -> torch.Tensor:
        """One step of several clients trained together: their gradients (K, D), from those of samples.

        The first ``counts[0]`` samples belong to the first session, which has this rule like all others;
        the columns are all trained parameters in the order of their names.
        """
