"""Local training's part of a scenario."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fedsim.config import Config, ConfigError, Float, Int


class LocalConfig(Config):
    """Training at one client in one round; the optimiser starts afresh each time."""

    epochs: Int = Field(default=1, ge=1, le=1000)
    """Passes over the client's records."""
    batch_size: Int = Field(default=8, ge=1, le=4096)
    """Records a step."""
    lr: Float = Field(default=2e-3, gt=0)
    """Learning rate."""
    optimizer: Literal["adamw", "sgd", "spsa"] = "adamw"
    """spsa takes no gradients: two forward passes a step give one byte, from which the step is made. These
    bytes are all that a client sends, unless a privacy stage changes its update or hides it."""
    weight_decay: Float = Field(default=0.0, ge=0, le=1000)
    """AdamW's and SGD's; SPSA takes none."""
    momentum: Float = Field(default=0.0, ge=0, lt=1)
    """Momentum of SGD; AdamW ignores it, SPSA takes none."""
    max_grad_norm: Float | None = Field(default=1.0, gt=0)
    """L2 norm at which a step's gradient is clipped; null never clips; SPSA ignores it."""

    @model_validator(mode="after")
    def _made_of_bytes(self) -> LocalConfig:
        for name in ("weight_decay", "momentum"):
            if self.optimizer == "spsa" and getattr(self, name) > 0:
                raise ConfigError(
                    f"spsa takes no {name}: its steps are made of their bytes alone; drop it", name
                )
        return self
