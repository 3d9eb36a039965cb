"""The game at client level: canary clients that each send one coordinate, through a real pipeline.

As in `canaries`, with whole clients for units (Andrew et al., "One-shot Empirical Privacy Estimation for
Federated Learning", 2024, audit client-level DP by canary clients in one run). Each of M clients exists for
all rounds or for none, by a fair coin. In every round the caller's sampler forms a cohort from those that
exist; each of them prepares a vector far longer than the pipeline's bound along its own coordinate; the
server receives and aggregates. A canary's score is the sum over rounds of its coordinate of the noisy sum.

The pipeline's stages write into the game's own ledger and draw from the game's own generator.

>>> import numpy as np
>>> from privacy.clipping import ClipConfig, ClipStage
>>> game = Dirac(Pipeline([ClipStage(ClipConfig(norm=1.0))]), rounds=1, canaries=4)
>>> ledger, included_M = Ledger(), np.array([True, False, True, True])
>>> scores_M = game.scores(included_M, lambda round_id, present: present, ledger, np.random.default_rng(0))
>>> scores_M.round(2).tolist(), ledger.releases()            # no noise: everything shows, nothing is charged
([1.0, 0.0, 1.0, 1.0], ())
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from privacy.audit.claims import claim_of
from privacy.audit.result import CONFIDENCE, AuditResult, Bound, judge
from privacy.contexts import ClientContext, Draw, RoundContext
from privacy.errors import RoundAborted
from privacy.ledger import Ledger
from privacy.pipeline import Pipeline
from privacy.rehearsal import rehearse
from privacy.stage import Stage
from privacy.transport import Update, Vector

Cohorts = Callable[[int, Sequence[str]], Sequence[str]]
"""(round, clients that exist) -> the round's cohort, drawn as a run draws it."""

OVERSHOOT = 1e6
"""Norm of what a canary sends over the pipeline's bound; a clip that adapts may be far above that."""
BRANCH = "audit"


def client_game(
    pipeline: Pipeline,
    cohorts: Cohorts,
    *,
    rounds: int,
    delta: float,
    generator: np.random.Generator,
    draw: Draw | None = None,
    canaries: int = 2_000,
    confidence: float = CONFIDENCE,
    bound: Bound = "accuracy",
    guesses: int | None = None,
) -> AuditResult:
    """Play ``rounds`` rounds and compare what leaks of a client with what the ledger says.

    The claim is the weakest that the ledger makes about any canary; ``draw`` is how ``cohorts`` draws. Time
    and memory of a round grow with the square of ``canaries``: about a second and 100 MB for 5,000.

    *Guarantees.* As `canaries.example_game`, if ``cohorts`` samples each client on its own. A sampler of a
    fixed or capped size ties canaries together; use ``bound="one_run"`` for those.

    *Edge cases.* A round that aborts (an empty cohort, say) releases nothing and shows nothing. A pipeline
    without a bound, or a ledger without releases: ``ValueError``. Noise of each client's own is audited where
    it is seen, in what each sends: all canaries send, those that are out send nothing but noise.
    """
    game = Dirac(pipeline, rounds=rounds, canaries=canaries, draw=draw or Draw())
    ledger = Ledger()
    included_M = generator.random(canaries) < 0.5
    scores_M = game.scores(included_M, cohorts, ledger, generator)
    claim = claim_of(ledger, game.names, unit="client", delta=delta)
    return judge(
        scores_M,
        included_M,
        level="client",
        claim=claim,
        threshold=0.0 if game.seen_alone else game.image() * claim.expected_shares / 2,
        confidence=confidence,
        bound=bound,
        guesses=guesses,
    )


@dataclass(frozen=True)
class Dirac:
    """M canary clients before one pipeline. ``norm`` is the sensitivity that the pipeline promises."""

    pipeline: Pipeline
    rounds: int
    canaries: int
    draw: Draw = field(default_factory=Draw)

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.canaries < 1:
            raise ValueError(f"rounds={self.rounds} and canaries={self.canaries} must be at least 1")
        _ = self.norm

    @property
    def norm(self) -> float:
        """L2 norm that a canary's update should have after the pipeline's clipping."""
        bounds = [wire.l2_bound for wire in self.pipeline.wires if wire.l2_bound is not None]
        if not bounds:
            raise ValueError("l2_bound=None: nothing bounds an update here; put clip into the pipeline")
        return min(bounds)

    @property
    def names(self) -> list[str]:
        """Client ids, canary i at position i."""
        return [f"canary-{i:06d}" for i in range(self.canaries)]

    @property
    def seen_alone(self) -> bool:
        """Whether each client adds its own noise to what the server sees of it."""
        facts = self.pipeline.facts
        return self.pipeline.reveals == "individual" and any(
            fact.place == "update" and fact.noised_by == "client" for fact in facts
        )

    def scores(
        self,
        included_M: NDArray[np.bool_],
        cohorts: Cohorts,
        ledger: Ledger,
        generator: np.random.Generator,
    ) -> NDArray[np.float64]:
        """What all rounds show of each canary, (M,)."""
        positions = {name: i for i, name in enumerate(self.names) if self.seen_alone or included_M[i]}
        scores_M = np.zeros(self.canaries)
        for round_id in range(1, self.rounds + 1):
            cohort = list(cohorts(round_id, list(positions)))
            updates = {name: self._update(positions[name], included_M) for name in cohort}
            try:
                scores_M += self._round(round_id, updates, positions, ledger, generator)
            except RoundAborted:
                continue
        return scores_M

    def _round(
        self,
        round_id: int,
        updates: Mapping[str, Update],
        positions: Mapping[str, int],
        ledger: Ledger,
        generator: np.random.Generator,
    ) -> NDArray[np.float64]:
        """The noisy sum of a round, or each client's own coordinate of what it sends."""
        context = RoundContext(
            round_id=round_id,
            branch=BRANCH,
            cohort=tuple(updates),
            roster=tuple(self.names),
            draw=self.draw,
            ledger=ledger,
            generator=_fresh(generator),
        )
        server = self.pipeline.open_round(context, normalise=False)
        parties = {
            name: self.pipeline.client(
                ClientContext(
                    client=name,
                    round_id=round_id,
                    branch=BRANCH,
                    generator=_fresh(generator),
                    ledger=ledger,
                )
            )
            for name in updates
        }
        sent, answers = rehearse(server, parties, updates)
        if self.seen_alone:
            shown_M = np.zeros(self.canaries)
            for name, payload in sent.items():
                shown_M[positions[name]] = payload.array[positions[name]]
            return shown_M
        return server.aggregate(answers).update.astype(np.float64)

    def _update(self, position: int, included_M: NDArray[np.bool_]) -> Update:
        update_D = np.zeros(self.canaries, dtype=np.float32)
        update_D[position] = OVERSHOOT * self.norm * (1.0 if included_M[position] else -1.0)
        return update_D

    def image(self) -> float:
        """What a canary shows of itself in one round without noise, in the units of scores.

        ``ValueError`` if what stands before the noise wipes canaries out (compression by deviation does).
        """
        context = self.pipeline.client(
            ClientContext(client="canary-000000", round_id=0, branch=BRANCH)
        ).context
        silent = [stage for stage in self.pipeline.stages if stage.facts.charges is None]
        value = self._update(0, np.ones(self.canaries, dtype=np.bool_)).astype(np.float64)
        for stage in silent:
            value, _ = stage.client(value, context)
        sent = value
        value = self._published(sent, silent)
        full = np.zeros_like(sent)
        full[0] = self.norm
        if not float(value[0]) > 0.5 * float(self._published(full, silent)[0]):
            raise ValueError(
                "canaries do not come through what stands before the noise; nothing can be audited"
            )
        return float(value[0])

    def _published(self, vector: Vector, silent: Sequence[Stage]) -> Vector:
        """A vector as it is published, after the server's hooks of some stages."""
        at = RoundContext(round_id=0, branch=BRANCH, attempt=0)
        for stage in reversed(silent):
            vector, _ = stage.server(vector, at)
        return vector


def _fresh(generator: np.random.Generator) -> np.random.Generator:
    return np.random.default_rng(int(generator.integers(2**63)))
