"""Views: what each adversary sees of a pipeline, and what a method may therefore ask for.

A method declares capabilities; a pipeline's honest server offers some. Asking for more is refused with
the reason before anything runs. The adversaries are nested: whoever colludes sees all that a curious
server sees.

>>> from privacy.pipeline import Pipeline
>>> view = honest_server(Pipeline())
>>> Capability.INDIVIDUAL_UPDATES in view.capabilities
True
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from privacy.errors import ViewError
from privacy.pipeline import Pipeline


class Capability(StrEnum):
    """What a method, a strategy or an attack may need to get hold of."""

    GLOBAL_MODELS = "global_models"
    """Every global model the server has produced, stored or current."""
    SUM = "sum"
    """The (weighted) sum or mean of a cohort's updates."""
    INDIVIDUAL_UPDATES = "individual_updates"
    """Each client's update, now or from a store: medians, Krum, FedEraser."""
    INDIVIDUAL_WEIGHTS = "individual_weights"
    """Each client's weight and reported metrics."""
    PARTICIPATION = "participation"
    """Who took part in which round."""
    CLIENT_COOPERATION = "client_cooperation"
    """The forgetting client trains once more. No pipeline forbids it; the scenario grants it."""
    PEER_COOPERATION = "peer_cooperation"
    """The other clients take part in unlearning rounds."""


Adversary = Literal["honest server", "curious server", "server and colluders"]


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """``sees`` says in words what reaches the adversary; ``hidden_among`` is the smallest number of
    honest clients whose updates it can only see added up (1: it sees each one)."""

    adversary: Adversary
    capabilities: frozenset[Capability]
    sees: tuple[str, ...]
    hidden_among: int


_ALWAYS = frozenset(
    {
        Capability.GLOBAL_MODELS,
        Capability.SUM,
        Capability.PARTICIPATION,
        Capability.CLIENT_COOPERATION,
        Capability.PEER_COOPERATION,
    }
)
_INDIVIDUAL = frozenset({Capability.INDIVIDUAL_UPDATES, Capability.INDIVIDUAL_WEIGHTS})


def _update_in_words(pipeline: Pipeline) -> str:
    bound = "" if pipeline.l2_bound is None else f", of L2 norm at most {pipeline.l2_bound:g}"
    private = "".join(f", differentially private per {unit}" for unit in sorted(pipeline.protects))
    return f"updates{bound}{private}"


def honest_server(pipeline: Pipeline) -> View:
    """What the protocol hands to a server that looks at nothing else."""
    masked = pipeline.reveals == "sum"
    subject = "the sum of" if masked else "each client's"
    return View(
        adversary="honest server",
        capabilities=_ALWAYS if masked else _ALWAYS | _INDIVIDUAL,
        sees=(
            f"{subject} {_update_in_words(pipeline)}",
            f"{subject} weights and declared metrics",
            "who took part",
        ),
        hidden_among=pipeline.min_cohort if masked else 1,
    )


def curious_server(pipeline: Pipeline) -> View:
    """A server that follows the protocol and keeps and studies every byte.

    Under masks the bytes add nothing to the sum. Two rounds whose cohorts differ by one client, over
    the same updates, do: their difference is that client's update.
    """
    honest = honest_server(pipeline)
    extra = ("public keys and masked vectors, uniform to it",) if pipeline.interactive else ()
    return View(
        adversary="curious server",
        capabilities=honest.capabilities,
        sees=honest.sees + extra,
        hidden_among=honest.hidden_among,
    )


def colluders(pipeline: Pipeline, *, count: int) -> View:
    """A curious server together with ``count`` clients of the cohort.

    It subtracts what they sent. With pairwise masks alone, any number of colluders leaves the others
    hidden among themselves; a cohort of ``min_cohort`` has at least one honest client for
    ``count`` < min_cohort, and if it is one, its update lies bare.
    """
    if count < 0:
        raise ValueError(f"count={count} must be at least 0")
    curious = curious_server(pipeline)
    left = max(1, pipeline.min_cohort - count) if pipeline.reveals == "sum" else 1
    return View(
        adversary="server and colluders",
        capabilities=curious.capabilities if left > 1 else curious.capabilities | _INDIVIDUAL,
        sees=(*curious.sees, f"everything that {count} colluding clients know"),
        hidden_among=left,
    )


def require(pipeline: Pipeline, needs: Iterable[str], *, method: str) -> None:
    """`ViewError` if ``method`` needs a capability that the pipeline's honest server lacks."""
    choices = [str(item) for item in Capability]
    wanted = sorted(needs)
    unknown = [need for need in wanted if need not in choices]
    if unknown:
        raise ValueError(f"needs={unknown} of {method!r} are unknown; choose from {choices}")
    view = honest_server(pipeline)
    missing = [need for need in wanted if Capability(need) not in view.capabilities]
    if missing:
        hiding = next(fact.name for fact in pipeline.facts if fact.reveals == "sum")
        raise ViewError(
            f"{method!r} needs {missing}, which {hiding} hides: the server sees {'; '.join(view.sees)}. "
            f"Take {hiding} out, or choose a method that needs only {sorted(view.capabilities)}"
        )
