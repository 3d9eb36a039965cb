"""Per-sample gradients by Opacus hooks, and the per-sample losses they need.

Yousefpour et al., "Opacus: User-Friendly Differential Privacy Library in PyTorch" (2021). The model is
not wrapped: parameter names stay as they are, and everything that Opacus hangs onto it is removed again.

>>> import numpy as np, torch
>>> model = torch.nn.Linear(2, 1, bias=False)
>>> data = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
>>> gradients = per_sample_gradients(model, np.array([0, 1]), lambda m, rows: m(data[rows]).squeeze(1))
>>> gradients["weight"].tolist()
[[[1.0, 0.0]], [[0.0, 3.0]]]
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from privacy.local import PerSampleLoss

if TYPE_CHECKING:
    import torch


def sample_means(sums_B: torch.Tensor, counts_B: torch.Tensor) -> torch.Tensor:
    """Each sample's mean loss over its own tokens (nats per token), (B,).

    The mean over all tokens of a batch, which language models return by default, makes one sample's
    gradient depend on the others' lengths; clipping does not bound that. A sample without tokens is 0.
    """
    return sums_B / counts_B.clamp(min=1)


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Parameters that require a gradient, by name, in the order of names."""
    return {name: p for name, p in sorted(model.named_parameters()) if p.requires_grad}


def per_sample_gradients(
    model: torch.nn.Module, positions: NDArray[np.int64], per_sample_loss: PerSampleLoss
) -> dict[str, torch.Tensor]:
    """Gradient of each sample's loss, (B, *shape) by parameter name.

    *Guarantees.* The model ends as it began: parameters, names, ``.grad``, hooks. A trainable
    parameter that the loss does not use gets zeros.

    *Edge cases.* An empty batch does not call the model. A loss that is not (B,) raises ``ValueError``,
    since a reduced loss ties samples together. A trainable module in eval mode raises ``ValueError``,
    since hooks skip it without a word.
    """
    import torch
    from opacus.grad_sample import GradSampleHooks

    parameters = trainable(model)
    if not positions.size:
        return {name: p.new_zeros((0, *p.shape)) for name, p in parameters.items()}
    asleep = [n for n, m in model.named_modules() if not m.training and _owns_trainable(m)]
    if asleep:
        raise ValueError(f"modules {asleep} are trained in eval mode; call model.train()")
    before = {name: p.grad for name, p in parameters.items()}
    for p in parameters.values():
        p.grad = None  # backward would add to the caller's tensor in place
    hooks = GradSampleHooks(model, batch_first=True, loss_reduction="sum")
    try:
        losses_B = per_sample_loss(model, positions)
        if losses_B.shape != (positions.size,):
            raise ValueError(
                f"per_sample_loss returned shape {tuple(losses_B.shape)}, expected ({positions.size},): each "
                "sample's own mean, not reduced over the batch"
            )
        with warnings.catch_warnings():
            # A frozen embedding feeds the first layer: that its inputs have no gradient is as it should be.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            torch.autograd.backward(losses_B.sum())
        return {name: _taken(p, name, positions.size) for name, p in parameters.items()}
    finally:
        hooks.cleanup()
        for name, p in parameters.items():
            p.grad = before[name]


def _owns_trainable(module: torch.nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters(recurse=False))


def _taken(parameter: torch.nn.Parameter, name: str, size: int) -> torch.Tensor:
    """The per-sample gradient that a hook left on a parameter."""
    import torch

    found = getattr(parameter, "grad_sample", None)
    if found is None:
        if parameter.grad is not None:
            raise ValueError(f"parameter {name!r} was used in a way that per-sample hooks cannot follow")
        return parameter.new_zeros((size, *parameter.shape))
    if not isinstance(found, torch.Tensor) or found.shape != (size, *parameter.shape):
        raise ValueError(f"parameter {name!r} has no gradient of shape (B={size}, *{tuple(parameter.shape)})")
    return found.detach()
