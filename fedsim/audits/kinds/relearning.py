"""Relearning: does training on some forgotten records bring back the rest?

Whoever has the weights trains them briefly on a part of what was forgotten, and asks about the other part.
What then returns faster than in the model that never saw either was hidden, not forgotten (Lynch et al.,
2024, arXiv:2402.16835; Hu et al., 2024, arXiv:2406.13356). One part teaches any model something about the
other, so a value alone tells nothing: only the excess over ``retrain`` does.

>>> Relearning(epochs=(1, 4)).split(["a", "b", "c", "d"], 7, 1)["held back"]
('c', 'd')
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from fedsim.audits.protocol import AuditConfig, CheckedLife, FinishedLife, Row
from fedsim.config import ConfigError, Float, Int
from fedsim.rng import ordering

if TYPE_CHECKING:
    from fedsim.measuring.scoring import ItemScores
    from fedsim.model.vectors import Arrays
    from fedsim.training.config import LocalConfig
    from fedsim.unlearning.request import Request

Parts = dict[str, tuple[str, ...]]
"""Record ids by part: ``relearned`` and ``held back``."""


def _increasing(epochs: tuple[int, ...]) -> tuple[int, ...]:
    if list(epochs) != sorted(set(epochs)):
        raise ValueError(f"found {list(epochs)}; each must be larger than the one before")
    return epochs


class Relearning(AuditConfig):
    """Trains every branch on some of the forgotten records and asks about the others.

    The training is the attacker's: the run's executor and settings, without its privacy stages.
    """

    summary: ClassVar[str] = "train on some forgotten records and see whether the others come back"

    audit: Literal["relearning"] = "relearning"
    epochs: Annotated[
        tuple[Annotated[Int, Field(ge=1, le=1000)], ...],
        Field(min_length=1, max_length=16),
        AfterValidator(_increasing),
    ] = (1, 2, 4, 8)
    """Passes over the relearned records after which is asked, in increasing order. Each is a training of its
    own from the branch's last adapter."""
    share: Float = Field(default=0.5, gt=0, lt=1)
    """Share of each request's records that is trained on; the others are held back."""
    lr: Float | None = Field(default=None, gt=0)
    """Learning rate; that of local training when left out, like its optimiser and all else."""
    batch_size: Int | None = Field(default=None, ge=1, le=4096)
    """Records a step; those of local training when left out."""

    def split(self, record_ids: Sequence[str], seed: int, request: int) -> Parts:
        """A request's records by part, each in their own order; a keyed draw decides who is in which."""
        drawn = ordering(seed, "audit", "relearning", request, ids=record_ids)
        chosen = frozenset(drawn[: self._chosen(len(record_ids))])
        named = list(enumerate(record_ids))
        return {
            "relearned": tuple(name for place, name in named if place in chosen),
            "held back": tuple(name for place, name in named if place not in chosen),
        }

    def _chosen(self, records: int) -> int:
        """How many of so many records are trained on."""
        return round(self.share * records)

    def check(self, life: CheckedLife) -> None:
        requests = life.life.requests
        if not requests:
            raise ConfigError("nobody asks to be forgotten, so nothing can be relearned; add forget events")
        sizes = [len(request.record_ids) for request in requests]
        most = max(sizes)
        if most < 2:
            raise ConfigError("no request has two records: one to relearn and one to hold back")
        if not any(0 < self._chosen(size) < size for size in sizes):
            raise ConfigError(
                f"{self.share} of {most} records, the most of a request, leaves one part empty; 0.5 does not",
                "share",
            )

    def parts(self, life: FinishedLife) -> Sequence[int]:
        """The requests, by number."""
        return [request.number for request in life.context.life.requests]

    def rows(self, life: FinishedLife, part: int) -> Iterator[Row]:
        request = life.context.life.request(part)
        split = self.split(request.record_ids, life.context.seed, request.number)
        why = self._why_not(life, request, split)
        if why is not None:
            life.note(f"{_where(life, request)}: not done: {why}")
            return
        for ensemble in life.ensembles:
            life.note(f"{_where(life, request)}: {ensemble} is an ensemble and is not attacked")
        starts = {branch: life.adapter(branch) for branch in life.branches}
        yield from self._about(life, request, split, starts)

    def _why_not(self, life: FinishedLife, request: Request, parts: Parts) -> str | None:
        """Why a request cannot be attacked at the life's end; None if it can."""
        from fedsim.life.schedule import judged_round

        if judged_round(life.context.life, request) < life.context.life.horizon:
            return "the client came back, so its records were trained on again"
        if not all(parts.values()):
            count = len(request.record_ids)
            return f"a share of {self.share} of its records ({count}) leaves one part empty"
        return None

    def _about(
        self, life: FinishedLife, request: Request, parts: Parts, starts: Mapping[str, Arrays]
    ) -> Iterator[Row]:
        """The rows of one request: every branch, budget, view, part and metric."""
        relearned = self._relearned(life, request, parts["relearned"], starts)
        for branch, start in starts.items():
            for epochs in (0, *self.epochs):
                adapter = relearned[branch, epochs] if epochs else start
                for view in life.views(branch):
                    scores = None if adapter is None else _scores(life, request, adapter, view)
                    who = {"branch": branch, "view": "guarded" if view else "bare", "epochs": epochs}
                    for found in _values(scores, parts, life.context.probing.headline):
                        yield life.row(audit=self.audit, request=request.number, **who, **found)

    def _relearned(
        self, life: FinishedLife, request: Request, chosen: Sequence[str], starts: Mapping[str, Arrays]
    ) -> dict[tuple[str, int], Arrays | None]:
        """Each branch's adapter after each budget, trained side by side; None where training failed."""
        from fedsim.model.vectors import from_vector, to_vector
        from fedsim.training.jobs import TrainJob

        engine = life.context.engine
        texts = engine.runtime.texts(request.client)
        local = self._local(engine.planner.local)
        jobs = {
            (branch, epochs): TrainJob.of_texts(
                {name: texts[name] for name in chosen},
                adapter=start,
                local=local.model_copy(update={"epochs": epochs}),
                seed=life.context.seed,
                client=request.client,
            )
            for epochs in self.epochs
            for branch, start in starts.items()
        }
        found: dict[tuple[str, int], Arrays | None] = {}
        for (branch, epochs), result in zip(jobs, life.train(list(jobs.values())), strict=True):
            start, found[branch, epochs] = starts[branch], None
            if result.error is None:
                found[branch, epochs] = from_vector(to_vector(start) + result.update, start)
            else:
                life.note(f"{_where(life, request)}: {branch} over {epochs} epochs: {result.error}")
        return found

    def _local(self, local: LocalConfig) -> LocalConfig:
        """Local training with what the audit says of it."""
        said = {"lr": self.lr, "batch_size": self.batch_size}
        return local.model_copy(update={name: value for name, value in said.items() if value is not None})


def _scores(life: FinishedLife, request: Request, adapter: Arrays, view: str) -> ItemScores | None:
    """What a view of a model scores on all records of a request; None where its outputs are not finite."""
    from fedsim.measuring.scoring import DivergedError, score_probe
    from fedsim.metrics.registry import METRICS

    context = life.context
    probe = context.probes.forget[request.number]
    reads_text = METRICS[context.probing.headline].reads_text
    try:
        with life.predictor(adapter, view) as predictor:
            return score_probe(predictor, context.model.tokenizer, probe, generate=reads_text)
    except DivergedError as error:
        life.note(f"{_where(life, request)}: not measured: {error}")
        return None


def _where(life: FinishedLife, request: Request) -> str:
    return f"{life.context.variant}: relearning for request {request.number}"


def _values(scores: ItemScores | None, parts: Parts, headline: str) -> Iterator[Row]:
    """Means over the records of each part that have a value, and their number; None and 0 without any."""
    import numpy as np

    for part, names in parts.items():
        for metric in dict.fromkeys((headline, "nll")):
            found = np.empty(0)
            if scores is not None and metric in scores.values:
                found = scores.values[metric][np.isin(scores.record_ids, names)]
                found = found[np.isfinite(found)]
            value = float(found.mean()) if found.size else None
            yield {"part": part, "metric": metric, "value": value, "n": int(found.size)}
