"""What an unlearning method is: a resumable sequence of round plans, and the losses they name.

A method sees a request and says, round by round, what the forgetting client does, what the ordinary
cohort does, and how the server combines the two. The rounds run through the same Grid, privacy
pipeline and ledger as any other and take time on the branch's clock. A plan is a pure function of the
request and the round's index, and its weights of what the request has kept, which checkpoints hold; so a run
that was killed goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fedsim.config import ConfigError
from fedsim.model.vectors import Arrays
from fedsim.training.objectives import LocalWork, MeanNll, Objective, ReferenceKl, RetainTerm
from fedsim.unlearning.desk import Desk, Sent
from fedsim.unlearning.request import Request
from privacy import Capability
from privacy.config import meant

if TYPE_CHECKING:
    from fedsim.data.records import Record
    from fedsim.model.adapter import AdapterModel
    from fedsim.model.predictor import Predictor

Promise = Literal["exact", "guaranteed", "approximate", "suppression"]
Role = Literal["target", "helper"]
Moves = Literal["adapter", "draft", "nothing"]
RetainOn = Literal["helpers", "own", "public"]
Combine = Literal["sum", "mean", "each"]
ServerState = Literal["keep", "reset", "rebase"]
"""What becomes of a strategy's momentum and moments: see ``Federation.replace``."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one role does in an unlearning round: weight in the combination, overrides of local training.

    ``most`` is the largest weight in size that ``MethodConfig.weigh`` may give it instead.
    """

    weight: float
    most: float | None = None
    lr: float | None = None
    epochs: int | None = None


@dataclass(frozen=True, kw_only=True)
class RoundPlan:
    """One unlearning round.

    The adapter moves by ``target.weight * u_target + helper.weight * mean(u_helpers)`` with ``combine:
    sum``; with ``mean`` that is divided by the sum of the two weights. A role that is None does nothing,
    and the mean is over the helpers that are asked. With ``server_state: keep`` the combined update goes
    through the strategy's optimiser like any other; otherwise it is applied as it is, and the optimiser
    neither adds old momentum to it nor replays it later.

    With ``each`` the method combines the updates itself (``MethodConfig.combined``), which takes a server
    that sees them one by one.

    ``moves: draft`` moves a copy of the adapter that only this request sees, from which the clients of such
    rounds start; ``moves: nothing`` keeps the combined update for ``settle``, under ``round-INDEX``.
    """

    target: Work | None = None
    helper: Work | None = None
    combine: Combine = "sum"
    server_state: ServerState = "rebase"
    moves: Moves = "adapter"

    def work(self) -> dict[Role, Work]:
        """The roles that have something to do, with what they do."""
        roles: tuple[tuple[Role, Work | None], ...] = (("target", self.target), ("helper", self.helper))
        return {role: work for role, work in roles if work is not None}


class MethodConfig(BaseModel):
    """What every unlearning method can be told; each method adds its own parameters.

    The same object is the method: its plans and losses are pure functions of these fields.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    _meant = field_validator("*")(meant)

    promise: ClassVar[Promise] = "approximate"
    title: ClassVar[str]
    summary: ClassVar[str]
    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.CLIENT_COOPERATION})
    has_branch: ClassVar[bool] = True
    """Whether it is a branch of its own beside the references that every run has."""
    guards: ClassVar[bool] = False
    """Whether users reach the model through ``guard``; such a method may take no rounds at all."""

    method: str
    label: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    """Name of the branch; the method's name when left out."""

    @property
    def branch(self) -> str:
        return self.label or self.method

    def rounds_for(self, request: Request) -> int:
        """How many rounds the method takes for a request."""
        return 0

    def parts(self, clients: Sequence[int]) -> tuple[frozenset[int], ...]:
        """The parts in which its own life trains, each with its clients; empty for the common life.

        ``clients`` are those that are ever there. Such a method plans no rounds: a part that held forgotten
        data is replayed without them.
        """
        return ()

    def joined(self, parts: Sequence[Predictor], model: AdapterModel) -> Predictor:
        """The model as its users see it, made of one for each part of one base."""
        raise NotImplementedError(f"{self.method} joins no parts")

    def stores(self, round_: int) -> bool:
        """Whether the server must store what is sent in a round of training, and the adapter before it.

        That takes a server that sees updates one by one.
        """
        return False

    def plan(self, request: Request, index: int) -> RoundPlan:
        """The plan of unlearning round ``index`` (0-based) for ``request``."""
        raise NotImplementedError(f"{self.method} plans no rounds")

    def helped_by(self, request: Request, index: int) -> int | None:
        """The past round whose cohort helps, as far as it is still there; None for a cohort of its own."""
        return None

    def draft(self, request: Request, desk: Desk) -> Arrays | None:
        """The draft with which the first round begins; None for the adapter."""
        return None

    def local(self, role: Role, index: int) -> LocalWork:
        """What a client of a role computes in unlearning round ``index``."""
        raise NotImplementedError(f"{self.method} has no local work")

    def combined(self, request: Request, index: int, updates: Mapping[int, Sent], desk: Desk) -> Arrays:
        """The update that a round with ``combine: each`` gives, from those of its clients."""
        raise NotImplementedError(f"{self.method} combines no updates itself")

    def weigh(self, plan: RoundPlan, kept: Mapping[str, Arrays]) -> RoundPlan:
        """The plan with the weights that follow from what the request has kept; nothing else may differ."""
        return plan

    def remember(self, request: Request, index: int, desk: Desk) -> Mapping[str, Arrays]:
        """What the request keeps after round ``index``, by name, in fp32; before ``settle``."""
        return {}

    def settle(self, request: Request, index: int, desk: Desk) -> Arrays | None:
        """The adapter after round ``index``, from what the request has kept; None leaves it as it is."""
        return None

    def guard(self, predictor: Predictor, tokenizer: Any, forgotten: Sequence[Record]) -> Predictor:
        """The model as its users see it once the ``forgotten`` records, of all granted requests, are."""
        return predictor


class LossMethodConfig(MethodConfig):
    """Base of the methods that are one forget loss at the target, with or without a retain term.

    Total loss = gamma * L_forget + alpha * L_retain. With the retain term at the other clients, the two
    are updates of separate trainings; on records of the forgetting client, they are one gradient a step.
    """

    needs: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.CLIENT_COOPERATION, Capability.PEER_COOPERATION}
    )

    rounds: int = Field(default=3, ge=1, le=1000)
    """Unlearning rounds per request."""
    lr: float | None = Field(default=None, gt=0)
    """Learning rate at the forgetting client; that of local training when left out."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the forgotten records in each unlearning round."""
    gamma: float = Field(default=1.0, gt=0)
    """Weight of the forget loss, or of the forgetting client's update where others hold the retain term."""
    alpha: float = Field(default=1.0, ge=0)
    """Weight of the retain term; 0 leaves it out."""
    retain: Literal["nll", "kl"] = "nll"
    """Retain term: negative log-likelihood, or KL to the model at the time of the request."""
    retain_on: RetainOn = "helpers"
    """On whose records: the round's cohort's (helpers); or, in the forgetting client's own steps, on those of
    its own that no request names (own) or on public ones that no probe asks about (public)."""
    surgery: bool = False
    """Take from each forget gradient what goes against the retain gradient; with own or public only."""
    combine: Literal["sum", "mean"] = "sum"
    """How the two weighted updates are combined."""
    server_state: ServerState = "rebase"
    """The server's momentum in unlearning rounds: left out (rebase), forgotten (reset), or used (keep)."""

    def rounds_for(self, request: Request) -> int:
        return self.rounds

    @model_validator(mode="after")
    def _needs_both_gradients(self) -> LossMethodConfig:
        if self.surgery and self._beside is None:
            raise ConfigError(
                "surgery needs the retain term's gradient at the forgetting client; choose retain_on: own or "
                "public, and alpha above 0",
                "surgery",
            )
        return self

    @property
    def _beside(self) -> RetainTerm | None:
        """The retain term in the forgetting client's own steps."""
        if self.retain_on == "helpers" or self.alpha == 0:
            return None
        return RetainTerm(
            self.retain_objective(),
            records=self.retain_on,
            gamma=self.gamma,
            alpha=self.alpha,
            surgery=self.surgery,
        )

    def plan(self, request: Request, index: int) -> RoundPlan:
        alone = self._beside is None
        helper = Work(weight=self.alpha) if self.alpha > 0 and alone else None
        target = Work(weight=self.gamma if alone else 1.0, lr=self.lr, epochs=self.epochs)
        return RoundPlan(target=target, helper=helper, combine=self.combine, server_state=self.server_state)

    def local(self, role: Role, index: int) -> LocalWork:
        if role == "helper":
            return LocalWork(self.retain_objective())
        return LocalWork(self.forget_objective(), retain=self._beside)

    def forget_objective(self) -> Objective:
        """The loss the forgetting client minimises."""
        raise NotImplementedError

    def retain_objective(self) -> Objective:
        """The loss on records that are kept."""
        return ReferenceKl() if self.retain == "kl" else MeanNll()
