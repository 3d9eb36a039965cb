"""Local training's part of a scenario."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fedsim.config import Config, ConfigError, Float, Int


class ScheduleConfig(Config):
    """How the learning rate rises and falls.

    After the warm-up, linear and cosine fall as in Hugging Face's Trainer. Its warm-up starts at 0.
    """

    shape: Literal["constant", "linear", "cosine"] = "cosine"
    """How it falls after the warm-up: not at all, in a line, or in half a period of the cosine."""
    over: Literal["rounds", "steps"] = "rounds"
    """Over the rounds of the life, constant within each; or over a client's steps, anew in each round."""
    warmup: Float = Field(default=0.0, ge=0, lt=1)
    """Share of the rounds or steps over which it rises, in equal steps from above 0."""
    floor: Float = Field(default=0.0, ge=0, le=1)
    """Share of the learning rate to which it falls."""

    def factors(self, total: int) -> NDArray[np.float64]:
        """What the learning rate is multiplied with at each of ``total`` rounds or steps, in (0, 1].

        >>> ScheduleConfig(shape="linear", warmup=0.25).factors(8).round(3).tolist()
        [0.333, 0.667, 1.0, 0.833, 0.667, 0.5, 0.333, 0.167]
        """
        rising = int(np.ceil(self.warmup * total))
        place = np.arange(total)
        gone = np.clip((place - rising) / max(total - rising, 1), 0, 1)
        fallen = {"constant": 0 * gone, "linear": gone, "cosine": (1 - np.cos(np.pi * gone)) / 2}[self.shape]
        return np.where(place < rising, (place + 1) / (rising + 1), 1 - (1 - self.floor) * fallen)


class LocalConfig(Config):
    """Training at one client in one round; the optimiser starts afresh each time."""

    epochs: Int = Field(default=1, ge=1, le=1000)
    """Passes over the client's records."""
    steps: Int | None = Field(default=None, ge=1, le=100_000)
    """Most optimiser steps in a round, however many passes that makes; null is no bound."""
    batch_size: Int = Field(default=8, ge=1, le=4096)
    """Records a step."""
    micro_batch: Int | None = Field(default=None, ge=1, le=4096)
    """Most records of a client that are computed at once; a step's gradient is gathered over several such
    parts. Saves memory, and changes results by rounding at most; null computes a step at once."""
    lr: Float = Field(default=2e-3, gt=0)
    """Learning rate."""
    schedule: ScheduleConfig | None = None
    """How it changes over rounds or steps; null is constant. A method's own learning rate stays as it is."""
    optimizer: Literal["adamw", "sgd", "spsa"] = "adamw"
    """spsa takes no gradients: two forward passes a step give one byte, from which the step is made. These
    bytes are all that a client sends, unless a privacy stage changes its update or hides it."""
    weight_decay: Float = Field(default=0.0, ge=0, le=1000)
    """AdamW's and SGD's; SPSA takes none."""
    momentum: Float = Field(default=0.0, ge=0, lt=1)
    """Momentum of SGD; AdamW ignores it, SPSA takes none."""
    max_grad_norm: Float | None = Field(default=1.0, gt=0)
    """L2 norm at which a step's gradient is clipped; null never clips; SPSA ignores it."""

    @property
    def at_once(self) -> int:
        """Most records of a client that are computed at once."""
        return self.micro_batch or self.batch_size

    def planned_steps(self, examples: int) -> int:
        """Optimiser steps of a training on so many records."""
        steps = self.epochs * -(-examples // self.batch_size)
        return steps if self.steps is None else min(steps, self.steps)

    def rates(self, steps: int) -> NDArray[np.float64]:
        """The learning rate of each of so many steps of one training."""
        if self.schedule is None or self.schedule.over == "rounds":
            return np.full(steps, self.lr)
        return self.lr * self.schedule.factors(steps)

    def in_round(self, round_: int, rounds: int) -> LocalConfig:
        """Local training in a round, counted from 1, of so many: with that round's learning rate."""
        if self.schedule is None or self.schedule.over == "steps":
            return self
        lr = self.lr * float(self.schedule.factors(rounds)[round_ - 1])
        return self.model_copy(update={"lr": lr, "schedule": None})

    def instead(self, *, lr: float | None, epochs: int | None) -> LocalConfig:
        """Local training with what is not None instead.

        Such a rate follows no schedule, and such passes have no bound of steps.
        """
        own: dict[str, object] = {} if lr is None else {"lr": lr, "schedule": None}
        return self.model_copy(update=own if epochs is None else {**own, "epochs": epochs, "steps": None})

    @model_validator(mode="after")
    def _one_rate_of_bytes(self) -> LocalConfig:
        if self.optimizer == "spsa" and self.schedule is not None and self.schedule.over == "steps":
            raise ConfigError("spsa has one learning rate a round; choose over: rounds", "schedule", "over")
        return self

    @model_validator(mode="after")
    def _parts_of_a_step(self) -> LocalConfig:
        if self.micro_batch is not None and self.micro_batch > self.batch_size:
            raise ConfigError(
                f"{self.micro_batch} is more than the {self.batch_size} records of a step; leave it out",
                "micro_batch",
            )
        return self

    @model_validator(mode="after")
    def _made_of_bytes(self) -> LocalConfig:
        for name in ("weight_decay", "momentum"):
            if self.optimizer == "spsa" and getattr(self, name) > 0:
                raise ConfigError(
                    f"spsa takes no {name}: its steps are made of their bytes alone; drop it", name
                )
        return self
