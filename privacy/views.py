"""Views: what each adversary sees of a pipeline, and what of it is private.

From these follows what a method may ask for.

A method declares capabilities; a pipeline's honest server offers some. Asking for more is refused with
the reason before anything runs. The adversaries are nested: whoever colludes sees all that a curious
server sees.

>>> from privacy.pipeline import Pipeline
>>> view = honest_server(Pipeline())
>>> Capability.INDIVIDUAL_UPDATES in view.capabilities
True
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from privacy.errors import ViewError
from privacy.local import LocalTask
from privacy.pipeline import Pipeline
from privacy.stage import acts_on_sum
from privacy.units import Unit


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


Adversary = Literal["reader of the models", "honest server", "curious server", "server and colluders"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Guarantee:
    """(epsilon, delta)-DP of one ``unit`` over the whole life, by the stage ``by``.

    Infinite if there is none.
    """

    unit: Unit
    epsilon: float
    delta: float
    by: str


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What one adversary sees.

    ``sees`` says in words what reaches it; ``hidden_among`` is the smallest number of honest clients whose
    updates it can only see added up (1: it sees each one); ``guarantees`` say what of it is differentially
    private.
    """

    adversary: Adversary
    capabilities: frozenset[Capability]
    sees: tuple[str, ...]
    hidden_among: int
    guarantees: tuple[Guarantee, ...] = ()
    colluders: int = 0

    def guarantee(self, unit: Unit) -> Guarantee | None:
        """The best one for a unit, None without."""
        found = [one for one in self.guarantees if one.unit == unit and one.epsilon < math.inf]
        return min(found, key=lambda one: one.epsilon, default=None)


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


def views(pipeline: Pipeline, tasks: Sequence[LocalTask] = ()) -> tuple[View, ...]:
    """All four, from the weakest adversary to the strongest.

    The strongest colludes with as many clients as secret sharing tolerates.
    """
    return (
        model_reader(pipeline, tasks),
        honest_server(pipeline, tasks),
        curious_server(pipeline, tasks),
        colluders(pipeline, tasks, count=pipeline.bearable_colluders),
    )


def _guarantees(
    pipeline: Pipeline, tasks: Sequence[LocalTask], *, server: bool, colluders: int = 0
) -> tuple[Guarantee, ...]:
    """What of all that an adversary sees is private.

    Noise of the server's own hides nothing from the server.
    """
    found = []
    for stage in pipeline.stages:
        fact = stage.facts
        if fact.charges is None or fact.delta is None:
            continue
        epsilon = stage.promise(pipeline.nominal, tasks, colluders=colluders)
        if server and fact.noised_by == "server":
            epsilon = math.inf
        if epsilon is not None:
            found.append(Guarantee(unit=fact.charges, epsilon=epsilon, delta=fact.delta, by=fact.name))
    return tuple(found)


def model_reader(pipeline: Pipeline, tasks: Sequence[LocalTask] = ()) -> View:
    """Whoever gets every global model, clients that were not asked to collude among them."""
    return View(
        adversary="reader of the models",
        capabilities=frozenset({Capability.GLOBAL_MODELS}),
        sees=("every global model",),
        hidden_among=max(pipeline.min_cohort, 1),
        guarantees=_guarantees(pipeline, tasks, server=False),
    )


def honest_server(pipeline: Pipeline, tasks: Sequence[LocalTask] = ()) -> View:
    """What the protocol hands to a server that looks at nothing else."""
    masked = pipeline.reveals == "sum"
    subject = "the sum of" if masked else "each client's"
    bound = "" if pipeline.l2_bound is None else f" of L2 norm at most {pipeline.l2_bound:.3g}"
    noised = [fact for fact in pipeline.facts if fact.noised_by in ("client", "clients together")]
    noise = f", with noise by {' and '.join(fact.name for fact in noised)}" if noised else ""
    return View(
        adversary="honest server",
        capabilities=_ALWAYS if masked else _ALWAYS | _INDIVIDUAL,
        sees=(
            f"{subject} updates{bound}{noise}",
            f"{subject} weights and declared metrics",
            "who took part",
        ),
        hidden_among=pipeline.min_cohort if masked else 1,
        guarantees=_guarantees(pipeline, tasks, server=True),
    )


def curious_server(pipeline: Pipeline, tasks: Sequence[LocalTask] = ()) -> View:
    """A server that follows the protocol and keeps and studies every byte.

    Under masks the bytes add nothing to the sum. Two rounds whose cohorts differ by one client, over
    the same updates, do: their difference is that client's update.
    """
    honest = honest_server(pipeline, tasks)
    extra = (
        ("public keys, sealed shares and masked vectors, all uniform to it",) if pipeline.interactive else ()
    )
    return View(
        adversary="curious server",
        capabilities=honest.capabilities,
        sees=honest.sees + extra,
        hidden_among=honest.hidden_among,
        guarantees=honest.guarantees,
    )


def colluders(pipeline: Pipeline, tasks: Sequence[LocalTask] = (), *, count: int) -> View:
    """A curious server together with ``count`` clients of the cohort.

    It subtracts what they sent, updates and shares of noise. Fewer than t of a client's t-of-k holders do not
    give away its masks; the others stay hidden among themselves. A cohort of ``min_cohort`` has at least one
    honest client for ``count`` < min_cohort, and if it is one, its update lies bare but for its own noise.
    """
    if count < 0:
        raise ValueError(f"count={count} must be at least 0")
    curious = curious_server(pipeline, tasks)
    masked = pipeline.reveals == "sum"
    left = max(1, pipeline.min_cohort - count) if masked else 1
    if count > pipeline.bearable_colluders:
        left = 1
    return View(
        adversary="server and colluders",
        capabilities=curious.capabilities if left > 1 else curious.capabilities | _INDIVIDUAL,
        sees=(*curious.sees, f"what {count if masked else 'any'} of the clients know"),
        hidden_among=left,
        guarantees=_guarantees(pipeline, tasks, server=True, colluders=count),
        colluders=count,
    )


def require(pipeline: Pipeline, needs: Iterable[str], *, method: str) -> None:
    """`ViewError` if ``method`` needs a capability that the pipeline's honest server lacks."""
    choices = [str(item) for item in Capability]
    wanted = sorted(map(str, needs))
    unknown = [need for need in wanted if need not in choices]
    if unknown:
        raise ValueError(f"needs={unknown} of {method!r} are unknown; choose from {choices}")
    view = honest_server(pipeline)
    missing = [need for need in wanted if Capability(need) not in view.capabilities]
    if missing:
        hiding = next(fact.name for fact in pipeline.facts if fact.reveals == "sum")
        raise ViewError(
            f"{method!r} needs {missing}, which {hiding} hides: the server sees {'; '.join(view.sees)}. "
            f"Take {hiding} out, or choose a method that needs only {sorted(map(str, view.capabilities))}"
        )


def require_individuals(pipeline: Pipeline, *, method: str) -> None:
    """`ViewError` if ``method`` cannot combine the updates of a pipeline one by one.

    Either the server does not see them, or a stage acts on their sum: noise that is added there would be left
    out, and the guarantee with it.
    """
    require(pipeline, [Capability.INDIVIDUAL_UPDATES], method=method)
    for fact in (stage.facts for stage in pipeline.stages if acts_on_sum(stage)):
        raise ViewError(
            f"{method!r} combines updates one by one, but {fact.name} {fact.on_sum}. "
            f"Take {fact.name} out, or choose a method that needs only the sum"
        )
