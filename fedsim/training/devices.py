"""The devices that a scenario asks for, as they are on this machine."""

from __future__ import annotations

import torch


def resolve_devices(device: str) -> tuple[str, ...]:
    """The devices behind ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; ValueError if one cannot be used."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}: no GPU is visible here; use auto or cpu")
    if device == "cuda":
        return tuple(f"cuda:{number}" for number in range(torch.cuda.device_count()))
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, NotImplementedError):
        raise ValueError(f"device={device!r} is not a device here; use auto, cpu, cuda or cuda:0") from None
    return (device,)
