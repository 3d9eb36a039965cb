"""The game at example level: canary records with orthogonal gradients, through the code that trains.

Nasr et al., "Tight Auditing of Differentially Private Machine Learning" (2023): a white-box auditor who may
choose gradients has most power with "Dirac" ones, each a coordinate of its own. M canaries, each in or out
for a client's whole life by a fair coin, pass through the rule's own sampler, clipping, noise and division
(`ExampleDpRule.open`, `batch`, `privatise`); only the model is left out. Coordinate i of what comes out
then tells of canary i alone, and its sum over all steps is the canary's score. (The likelihood ratio under
the claim would be sharper against a mechanism that keeps it, at low sampling rates; against noise that is
too weak it fails, since it takes the excess spread for absence. The sum does not depend on the claim.)

Nothing of a training is touched: the game has a ledger of its own, and all its coins and noise come from the
generator that it is given, which must not be one that a training uses.

>>> import numpy as np
>>> from privacy.example_dp import ExampleDpConfig
>>> rule = ExampleDpRule(ExampleDpConfig(noise_multiplier=4.0, delta=1e-5, clip_norm=0.5, sample_rate=1.0))
>>> task = LocalTask(client="a", round_id=1, branch="main", attempt=0, nominal_records=9, steps=2,
...                  planned_steps=2)
>>> told = example_game(rule, [task], canaries=1000, generator=np.random.default_rng(1))
>>> told.broken, round(told.claimed_epsilon, 2)
(False, 1.36)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from privacy.audit.claims import claim_of
from privacy.audit.result import CONFIDENCE, AuditResult, Bound, judge
from privacy.example_dp import ExampleDpRule
from privacy.ledger import Ledger
from privacy.local import LocalTask

OVERSHOOT = 10.0
"""Norm of a canary over the clip norm, so that clipping that does nothing shows tenfold."""


@dataclass(frozen=True, slots=True)
class DiracGradients:
    """Gradients of R samples of one client, each ``length`` along one of D coordinates, never formed."""

    coordinates_R: NDArray[np.int64]
    length: float
    dimension: int

    def norms(self) -> torch.Tensor:
        return torch.full((len(self.coordinates_R),), self.length, dtype=torch.float64)

    def sums(self, factors_R: torch.Tensor) -> torch.Tensor:
        sums_KD = torch.zeros((1, self.dimension), dtype=torch.float32)
        where_R = torch.from_numpy(self.coordinates_R)
        return sums_KD.index_put_((torch.zeros_like(where_R), where_R), (factors_R * self.length).float())


def example_game(
    rule: ExampleDpRule,
    tasks: Sequence[LocalTask],
    *,
    generator: np.random.Generator,
    canaries: int = 20_000,
    confidence: float = CONFIDENCE,
    bound: Bound = "accuracy",
    guesses: int | None = None,
) -> AuditResult:
    """Play a client's life, ``tasks`` in order, and compare what leaks with what its ledger says.

    The sampling rate is that of the tasks, whose ``nominal_records`` count the client's real records, not
    canaries. Delta is the rule's. A training that the budget refuses is sat out, as it would be in a run.

    *Guarantees.* A rule that keeps its claim is called broken with probability at most 1 - ``confidence``.
    Same generator state, same result.

    *Blind spots.* Noise shared by all coordinates is seen by "one_run" only; a loss that ties records
    together by `losses` only.

    *Edge cases.* No task, tasks of several clients, or none that is affordable: ``ValueError``.
    """
    if len({task.client for task in tasks}) != 1:
        raise ValueError(f"tasks={len(tasks)} must be trainings of exactly one client")
    ledger = Ledger()
    included_M = generator.random(canaries) < 0.5
    noise = torch.Generator().manual_seed(int(generator.integers(2**63)))
    scores_M = np.zeros(canaries)
    for task in tasks:
        if rule.affordable(task, ledger):
            scores_M += _training(rule, task, ledger, included_M, generator, noise)
    claim = claim_of(ledger, [tasks[0].client], unit="example", delta=rule.config.delta)
    return judge(
        scores_M,
        included_M,
        level="example",
        claim=claim,
        threshold=rule.config.clip_norm * claim.expected_shares / 2,
        confidence=confidence,
        bound=bound,
        guesses=guesses,
    )


def _training(
    rule: ExampleDpRule,
    task: LocalTask,
    ledger: Ledger,
    included_M: NDArray[np.bool_],
    generator: np.random.Generator,
    noise: torch.Generator,
) -> NDArray[np.float64]:
    """One training: the sum over its steps of what each canary's coordinate shows, (M,)."""
    session = rule.open(task, ledger)
    shown_M = np.zeros(len(included_M))
    for _ in range(task.steps):
        drawn = session.batch(generator.random(len(included_M)))
        present_R = drawn[included_M[drawn]]
        canaries = DiracGradients(present_R, OVERSHOOT * rule.config.clip_norm, len(included_M))
        private_KD = rule.privatise([session], canaries, [len(present_R)], [noise])
        shown_M += private_KD[0].double().numpy()
    return shown_M * rule.expected_batch(task)
