"""The game about the loss: does one record change what the others contribute?

DP-SGD bounds what one record *adds*. If a record also changes its neighbours' gradients, the sum moves by
more than the clip norm and every claim is void. The usual way to get there is a language model's default
loss, the mean over all tokens of the batch: one long record makes all others small. Dirac canaries cannot
see this, since they pass no model; this game takes real per-sample gradients.

Each of G games is one step: the same background records, and one canary record that is there by a fair
coin. The auditor knows the clipped sums without noise, with and without the canary, and projects the
private gradient on their difference.

>>> import numpy as np, torch
>>> from privacy.example_dp import ExampleDpConfig
>>> rule = ExampleDpRule(ExampleDpConfig(noise_multiplier=4.0, delta=1e-5, clip_norm=1.0, sample_rate=1.0))
>>> model = torch.nn.Linear(2, 1, bias=False)
>>> rows_ND = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 9.0]])
>>> game = LossGame(rule, model, lambda m, rows: m(rows_ND[rows]).squeeze(1), np.array([0, 1]), canary=2)
>>> round(game.sensitivity, 3)
1.0
>>> game.play(games=100, generator=np.random.default_rng(0)).broken
False
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from privacy.audit.claims import claim_of
from privacy.audit.result import CONFIDENCE, AuditResult, Bound, judge
from privacy.dp_sgd import DenseGradients, clip_and_sum
from privacy.example_dp import ExampleDpRule
from privacy.ledger import Ledger
from privacy.local import LocalTask, PerSampleLoss
from privacy.per_sample import per_sample_gradients


@dataclass(frozen=True)
class LossGame:
    """One scene: ``background`` records (B,) and a ``canary``, as positions for ``per_sample_loss``.

    The scene decides what can be seen. Long canary, short background, and background gradients near the clip
    norm show a loss that shares tokens. ``rule`` must sample everybody (``sample_rate=1.0``): sampling is not
    what is asked here, and would hide it. ``model`` is in training mode, and stays as it is.
    """

    rule: ExampleDpRule
    model: torch.nn.Module
    per_sample_loss: PerSampleLoss
    background: NDArray[np.int64]
    canary: int

    def __post_init__(self) -> None:
        rate = self.rule.sampling(self._task(0))[0]
        if rate != 1.0:
            raise ValueError(f"sampling rate {rate} hides what the loss does; give a rule of sample_rate=1.0")

    @property
    def sensitivity(self) -> float:
        """How far the canary moves the clipped sum, in clip norms. Above 1, no noise is calibrated to it."""
        return float(torch.linalg.vector_norm(self._difference)) / self.rule.config.clip_norm

    def play(
        self,
        *,
        generator: np.random.Generator,
        games: int = 400,
        confidence: float = CONFIDENCE,
        bound: Bound = "accuracy",
        guesses: int | None = None,
    ) -> AuditResult:
        """Play ``games`` independent games, each one step of a client of its own, in the game's own ledger.

        *Guarantees.* A loss of which each record's gradient is its own is called broken with probability at
        most 1 - ``confidence``. The games share nothing, so the assumptions of "accuracy" hold by
        construction.

        *Edge cases.* A canary that changes nothing at all: ``ValueError``, as there is nothing to see.
        """
        length = float(torch.linalg.vector_norm(self._difference))
        if not length > 0:
            raise ValueError(
                f"canary={self.canary} does not change the gradient; choose a scene in which it does"
            )
        direction_D = self._difference / length
        included_G = generator.random(games) < 0.5
        noise = torch.Generator().manual_seed(int(generator.integers(2**63)))
        ledger = Ledger()
        shown = [
            self._step(game, bool(there), direction_D, ledger, noise) for game, there in enumerate(included_G)
        ]
        return judge(
            np.array(shown),
            included_G,
            level="example",
            claim=claim_of(
                ledger,
                [self._task(game).client for game in range(games)],
                unit="example",
                delta=self.rule.config.delta,
            ),
            threshold=float(direction_D @ (self._clipped_sum(there=True) + self._clipped_sum(there=False)))
            / 2,
            confidence=confidence,
            bound=bound,
            guesses=guesses,
        )

    def _task(self, game: int) -> LocalTask:
        return LocalTask(
            client=f"game-{game:06d}",
            round_id=1,
            branch="audit",
            attempt=0,
            nominal_records=len(self.background) + 1,
            steps=1,
            planned_steps=1,
        )

    def _positions(self, there: bool) -> NDArray[np.int64]:
        return np.append(self.background, self.canary) if there else self.background

    def _clipped_sum(self, *, there: bool) -> torch.Tensor:
        """The clipped sum without noise, (D,) in fp64."""
        found = per_sample_gradients(self.model, self._positions(there), self.per_sample_loss)
        grads_RD = torch.cat([found[name].flatten(1) for name in sorted(found)], dim=1)
        counts = [len(grads_RD)]
        sums_KD, _ = clip_and_sum(
            DenseGradients(grads_RD, counts), counts, clip_norm=self.rule.config.clip_norm
        )
        return sums_KD[0].double()

    @cached_property
    def _difference(self) -> torch.Tensor:
        return self._clipped_sum(there=True) - self._clipped_sum(there=False)

    def _step(
        self, game: int, there: bool, direction_D: torch.Tensor, ledger: Ledger, noise: torch.Generator
    ) -> float:
        """The private gradient of one game along the direction, as a sum over records."""
        task = self._task(game)
        session = self.rule.open(task, ledger)
        private, _ = session.gradients(self.model, self._positions(there), self.per_sample_loss, noise)
        private_D = torch.cat([private[name].flatten() for name in sorted(private)]).double()
        return float(direction_D @ private_D) * self.rule.expected_batch(task)
