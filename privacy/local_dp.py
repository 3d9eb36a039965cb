"""Local DP: each client adds noise to its own update, so that not even the server learns much of it.

Kasiviswanathan et al., "What Can We Learn Privately?" (2011), with Gaussian noise. What the server sees of
one client is private by itself, whoever else takes part; the price is noise that does not shrink with the
cohort.

>>> import numpy as np
>>> from privacy.ledger import Ledger
>>> stage = LocalDpStage(LocalDpConfig(noise_multiplier=2.0, delta=1e-5))
>>> _ = stage.wire(Wire(kind="float", l2_bound=1.0), Nominal())
>>> ledger, generator = Ledger(), np.random.default_rng(0)
>>> here = dict(round_id=1, branch="main", attempt=0)
>>> context = ClientContext(client="a", ledger=ledger, generator=generator, **here)
>>> stage.client(np.zeros(3), context)[0].round(1).tolist()
[0.3, -0.3, 1.3]
>>> [release.neighbours for release in ledger.releases()]
['replace_one']
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from privacy.accounting import Mechanism
from privacy.contexts import ClientContext, Nominal, RoundContext
from privacy.errors import BudgetExceededError, PipelineError
from privacy.ledger import Ledger, Release
from privacy.local import LocalTask, Metrics
from privacy.noise import Budget, bounded
from privacy.stage import Facts, Stage, Wire
from privacy.transport import Vector

FARTHEST = 10.0
"""Standard deviations above its mean that the norm of Gaussian noise has a chance of e^-50 to exceed."""


class LocalDpConfig(Budget):
    """Adds noise to each client's own update, which protects it from the server, too."""

    stage: Literal["local_dp"] = "local_dp"


class LocalDpStage(Stage):
    """Gaussian noise of standard deviation ``noise_multiplier`` times the clip norm, at the client.

    *Guarantees.* Neighbours exchange a client's whole data for another's, which moves its update by up to
    twice the clip norm; no amplification by sampling is claimed, since the server sees who sends. The noise
    is charged where it is drawn.

    *Edge cases.* Unbounded updates: `PipelineError`. A spent budget: `BudgetExceededError` before anything is
    drawn.
    """

    def __init__(self, config: LocalDpConfig) -> None:
        self.config = config
        self.sensitivity = 0.0
        self.noise_multiplier = 0.0

    @property
    def facts(self) -> Facts:
        return Facts(
            name="local_dp",
            place="update",
            charges="client",
            delta=self.config.delta,
            accountant=self.config.accountant,
            noised_by="client",
        )

    def wire(self, incoming: Wire, nominal: Nominal) -> Wire:
        self.sensitivity = bounded(incoming, "local_dp")
        if incoming.codec is not None:
            raise PipelineError("local_dp after compression undoes it; take one of the two out")
        rounds = nominal.rounds
        self.noise_multiplier = self.config.multiplier(((_exchange(1.0), rounds),) if rounds else ())
        std = self.noise_multiplier * self.sensitivity
        size = incoming.dimension
        longest = None if size is None else self.sensitivity + std * (math.sqrt(size) + FARTHEST)
        return Wire(kind="float", l2_bound=None, longest=longest, dimension=size)

    def promise(self, nominal: Nominal, tasks: Sequence[LocalTask], *, colluders: int = 0) -> float | None:
        return self.config.bound(
            ((_exchange(self.noise_multiplier), nominal.rounds),) if nominal.rounds else ()
        )

    def charged(self, context: ClientContext, task: LocalTask | None) -> Sequence[Release]:
        return [self._release(context.client, context)]

    def affordable(self, client: str, context: RoundContext, ledger: Ledger) -> bool:
        return self.config.allows(ledger, self._release(client, context))

    def client(self, update: Vector, context: ClientContext) -> tuple[Vector, Metrics]:
        if context.generator is None or context.ledger is None:
            raise ValueError("local_dp needs a generator and a ledger; give both to the client")
        release = self._release(context.client, context)
        if not self.config.allows(context.ledger, release):
            raise BudgetExceededError(
                f"another round would lift client {context.client!r} above "
                f"target_epsilon={self.config.target_epsilon}; it sits round {context.round_id} out"
            )
        context.ledger.append(release)
        std = self.noise_multiplier * self.sensitivity
        return update + context.generator.normal(0.0, std, update.shape), {"noise_std": std}

    def _release(self, client: str, context: RoundContext | ClientContext) -> Release:
        return self.config.release(_exchange(self.noise_multiplier), [client], context)


def _exchange(noise_multiplier: float) -> Mechanism:
    return Mechanism(noise_multiplier=noise_multiplier, sampling="none", neighbours="replace_one")
