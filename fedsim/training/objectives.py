"""Local losses: a value per sample, from one forward pass or two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    import torch

    from fedsim.model.forward import Pass


Answers = Literal["own", "refusal", "both"]


@dataclass(frozen=True)
class Needs:
    """What an objective must be shown beside the current model's logits.

    ``reference``: a pass under the adapter at the request. ``layer``: what leaves a block of the base, in
    both passes; blocks count from 0, or from the last one back with -1. ``answers``: what passes are over,
    each record's own answer, a refusal in its place (``fedsim.data.refusals``), or both, where a pass over
    the own answers has that over the refusals beside it (``Pass.refusal``).
    """

    reference: bool = False
    layer: int | None = None
    answers: Answers = "own"


class Objective(Protocol):
    """A local loss: one value per sample, (B,), to be averaged over the batch and minimised.

    Objectives that are equal compute the same, so clients that share one are computed together.
    """

    @property
    def needs(self) -> Needs:
        """What it must be shown."""
        ...

    def __call__(self, current: Pass, reference: Pass | None) -> torch.Tensor: ...


Kept = Literal["own", "public"]


@dataclass(frozen=True)
class RetainTerm:
    """A second loss in the same steps, on as many records that are kept: ``gamma`` L + ``alpha`` L_retain.

    ``records``: the client's own that no request names, or public ones. With ``surgery`` the first loss's
    gradient loses its part against the second's, where they conflict (GRU; Wang et al., 2025,
    arXiv:2503.09117; after PCGrad, Yu et al., 2020, arXiv:2001.06782).
    """

    objective: Objective
    records: Kept
    gamma: float = 1.0
    alpha: float = 1.0
    surgery: bool = False


@dataclass(frozen=True)
class LocalWork:
    """What a client computes: an update that lowers an objective.

    With ``importance`` it is the mean over its records of the objective's squared gradient instead, (d,): the
    diagonal Fisher information, where the objective is a negative log-likelihood. With ``tells`` the server
    learns the mean of its losses, too, for the method's ``remember``. ``retain`` is a second loss beside it.
    """

    objective: Objective
    importance: bool = False
    tells: bool = False
    retain: RetainTerm | None = None


@dataclass(frozen=True)
class MeanNll:
    """Ordinary training: each sample's own mean negative log-likelihood per token."""

    needs: ClassVar[Needs] = Needs()

    def __call__(self, current: Pass, reference: Pass | None) -> torch.Tensor:
        return current.mean_nll


@dataclass(frozen=True)
class ReferenceKl:
    """KL(reference || current) per answer token, the distillation form of a retain term."""

    needs: ClassVar[Needs] = Needs(reference=True)

    def __call__(self, current: Pass, reference: Pass | None) -> torch.Tensor:
        import torch

        assert reference is not None
        log_p = torch.log_softmax(current.logits_NV, dim=-1)
        log_q = torch.log_softmax(reference.logits_NV, dim=-1)
        kl_N = (log_q.exp() * (log_q - log_p)).sum(-1)
        return current.token_means(kl_N)
