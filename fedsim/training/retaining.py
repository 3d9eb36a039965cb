"""Two losses in one step: the gradient of what is forgotten, and beside it that of what is kept."""

from __future__ import annotations

import torch

from fedsim.model.adapter import AdapterModel
from fedsim.training.objectives import RetainTerm


def taken(model: AdapterModel) -> dict[str, torch.Tensor]:
    """The gradients, zero for a parameter without one, which the model no longer has."""
    gradients = {
        name: torch.zeros_like(value) if value.grad is None else value.grad
        for name, value in model.parameters().items()
    }
    model.module.zero_grad(set_to_none=True)
    return gradients


def join(model: AdapterModel, forget: dict[str, torch.Tensor], term: RetainTerm) -> None:
    """Put both losses' gradients together; the model has those of the retain loss."""
    retain = taken(model)
    against = sum(float((forget[name].double() * retain[name]).sum()) for name in retain)
    length = sum(float(value.double().square().sum()) for value in retain.values())
    share = against / length if term.surgery and against < 0 and length > 0 else 0.0
    for name, parameter in model.parameters().items():
        rectified = forget[name] - share * retain[name]
        parameter.grad = term.gamma * rectified + term.alpha * retain[name]
