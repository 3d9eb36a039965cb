"""Adaptive server optimisers as their papers define them: FedAdagrad, FedYogi and FedAdam.

Reddi et al., "Adaptive Federated Optimization" (2021, arXiv:2003.00295), algorithm 2, with the clients' mean
update D of a round, coordinate by coordinate:

    m <- beta_1 m + (1 - beta_1) D          v <- see each class          x <- x + eta m / (sqrt(v) + tau)

from m = 0 and v = tau^2. FedAdam corrects its moments for that start unless told otherwise (Kingma & Ba,
"Adam", 2015, arXiv:1412.6980, algorithm 1): from v = 0, with t rounds so far,

    x <- x + eta (m / (1 - beta_1^t)) / (sqrt(v / (1 - beta_2^t)) + tau)

Deviations of Flower 1.42 from these, which are mended here: its FedAdam takes ``server_round + 1`` for t, so
that the first step is .74 eta instead of eta and rounds to which nobody came advance t; it divides tau by
``sqrt(1 - beta_2^t)``, ten times tau at first; FedAdagrad and FedYogi start from v = 0, which makes the first
step of FedAdagrad longer. Here t counts the rounds whose update this optimiser applied.

>>> FedAdam(eta=0.1, beta_2=0.99).second_moment(np.zeros(1), np.full(1, 2.0)).round(6).tolist()
[0.04]
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg
from flwr.serverapp.strategy.fedopt import FedOpt
from numpy.typing import NDArray


class Adaptive(FedOpt):
    """What the three share: the first moment, the step, the count of rounds; moments are float64."""

    bias_correction = False
    steps = 0

    def second_moment(self, v: NDArray[np.float64], delta: NDArray[np.float64]) -> NDArray[np.float64]:
        """The second moment after a mean update ``delta`` of the same shape."""
        raise NotImplementedError

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The adapter after a round's mean update, float64; None, and nothing advances, without a reply."""
        mean, metrics = FedAvg.aggregate_train(self, server_round, replies)
        if mean is None:
            return None, metrics
        assert self.current_arrays is not None, "configure_train comes first"
        names = list(self.current_arrays)
        start = 0.0 if self.bias_correction else self.tau**2
        before = {name: self.current_arrays[name].astype(np.float64) for name in names}
        delta = {name: mean[name].numpy().astype(np.float64) - before[name] for name in names}
        m = self.m_t or {name: np.zeros_like(before[name]) for name in names}
        v = self.v_t or {name: np.full_like(before[name], start) for name in names}
        self.steps += 1
        self.m_t = {name: self.beta_1 * m[name] + (1 - self.beta_1) * delta[name] for name in names}
        self.v_t = {name: self.second_moment(v[name], delta[name]) for name in names}
        moved = {name: before[name] + self._step(self.m_t[name], self.v_t[name]) for name in names}
        return ArrayRecord({name: Array(np.asarray(value)) for name, value in moved.items()}), metrics

    def _step(self, m: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.bias_correction:
            m, v = m / (1 - self.beta_1**self.steps), v / (1 - self.beta_2**self.steps)
        return self.eta * m / (np.sqrt(v) + self.tau)


class FedAdagrad(Adaptive):
    """Adaptive server learning rates that only shrink (Reddi et al., 2021): v <- v + D^2, beta_1 = 0."""

    def second_moment(self, v: NDArray[np.float64], delta: NDArray[np.float64]) -> NDArray[np.float64]:
        return v + delta**2


class FedYogi(Adaptive):
    """Adaptive server learning rates with momentum, additive (Zaheer et al., 2018).

    v <- v - (1 - beta_2) D^2 sign(v - D^2), as in Reddi et al., 2021.
    """

    def second_moment(self, v: NDArray[np.float64], delta: NDArray[np.float64]) -> NDArray[np.float64]:
        return v - (1 - self.beta_2) * delta**2 * np.sign(v - delta**2)


class FedAdam(Adaptive):
    """Adaptive server learning rates with momentum (Kingma & Ba, 2015).

    v <- beta_2 v + (1 - beta_2) D^2, as in Reddi et al., 2021.
    """

    def __init__(self, *, bias_correction: bool = True, **own: Any) -> None:
        super().__init__(**own)
        self.bias_correction = bias_correction

    def second_moment(self, v: NDArray[np.float64], delta: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.beta_2 * v + (1 - self.beta_2) * delta**2
