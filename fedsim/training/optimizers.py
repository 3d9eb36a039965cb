"""The optimisers of local training, alone or with clients side by side. Legend: K clients, D parameters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.training.config import LocalConfig


def make_optimizer(
    local: LocalConfig, parameters: Sequence[torch.nn.Parameter], *, fused: bool = False
) -> torch.optim.Optimizer:
    """A fresh optimiser for one round; element-wise, so that stacked clients do not touch each other.

    SPSA has none: it takes no gradients.
    """
    if local.optimizer == "spsa":
        raise ValueError("optimizer='spsa' takes no gradients; train with a SequentialExecutor")
    if local.optimizer == "sgd":
        return torch.optim.SGD(
            list(parameters),
            lr=local.lr,
            momentum=local.momentum,
            weight_decay=local.weight_decay,
            fused=fused,
        )
    return torch.optim.AdamW(list(parameters), lr=local.lr, weight_decay=local.weight_decay, fused=fused)


def step_at(optimizer: torch.optim.Optimizer, vectors_KD: torch.Tensor, rates_K: NDArray[np.float64]) -> None:
    """One step of stacked clients, each at its own learning rate.

    AdamW and SGD move by a multiple of the rate and remember nothing of it.
    """
    (group,) = optimizer.param_groups
    most = group["lr"] = float(rates_K.max())
    if (rates_K == most).all():
        optimizer.step()
        return
    before_KD = vectors_KD.detach().clone()
    optimizer.step()
    shares_K = torch.from_numpy(rates_K / most).to(before_KD)
    vectors_KD.data.sub_(before_KD).mul_(shares_K[:, None]).add_(before_KD)
