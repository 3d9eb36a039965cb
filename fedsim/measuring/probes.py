"""The records that a life is measured on, chosen once and encoded once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsim.data.records import Corpus, Record
from fedsim.life.script import Life
from fedsim.measuring.config import ProbesConfig
from fedsim.measuring.probe import Probe, ProbeKind, build_probe
from fedsim.metrics.registry import METRICS
from fedsim.model.prompts import TextFormat
from fedsim.rng import uniform


@dataclass(frozen=True, kw_only=True)
class ProbeSet:
    """The probes of one life: one per request, and retain, holdout, public and other ones."""

    forget: Mapping[int, Probe]
    retain: Probe | None
    holdout: Probe | None
    public: Mapping[str, Probe]
    asked: Mapping[str, Probe]
    client_of: Mapping[str, int]
    """Which client holds a record, by record id."""

    def named(self) -> Iterable[tuple[str, ProbeKind, Probe]]:
        for number, probe in self.forget.items():
            yield f"forget:{number}", "forget", probe
        if self.retain is not None:
            yield "retain", "retain", self.retain
        if self.holdout is not None:
            yield "holdout", "retain", self.holdout
        for name, probe in self.public.items():
            yield name, "public", probe
        for name, probe in self.asked.items():
            yield name, "retain", probe


def build_probes(
    tokenizer: Any, corpus: Corpus, life: Life, config: ProbesConfig, fmt: TextFormat, *, seed: int
) -> ProbeSet:
    """Choose and encode the records to ask about; keyed draws, so that the choice is the same in each run."""
    by_id = {record.record_id: record for held in corpus.clients.values() for record in held}
    owner = {record.record_id: client for client, held in corpus.clients.items() for record in held}

    def probe(name: str, records: Sequence[Record]) -> Probe | None:
        return build_probe(tokenizer, name, records, fmt) if records else None

    forget = {
        request.number: build_probe(
            tokenizer, request.subject, [by_id[name] for name in request.record_ids], fmt
        )
        for request in life.requests
    }
    holdout = _draw(corpus.holdout, config.max_holdout, seed, "holdout")

    def sets(groups: Mapping[str, Sequence[Record]]) -> dict[str, Probe]:
        return {
            name: build_probe(tokenizer, name, _draw(records, config.most_public(name), seed, name), fmt)
            for name, records in groups.items()
            if records
        }

    return ProbeSet(
        forget=forget,
        retain=probe("retain", _retained(corpus, life, config, seed)),
        holdout=probe("holdout", holdout),
        public=sets(corpus.public),
        asked=sets(corpus.asked),
        client_of=owner,
    )


def unprobed(corpus: Corpus, config: ProbesConfig, seed: int) -> list[Record]:
    """Public records that no probe asks about."""
    probed = {
        record.record_id
        for name, records in corpus.public.items()
        for record in _draw(records, config.most_public(name), seed, name)
    }
    return [record for held in corpus.public.values() for record in held if record.record_id not in probed]


def absent_metrics(probes: ProbeSet) -> dict[str, str]:
    """Metrics that no record of any request can have, each with what it needs."""
    asked = [record for probe in probes.forget.values() for record in probe.records]
    has = {
        "paraphrased questions": any(record.paraphrased_question is not None for record in asked),
        "wrong answers": any(record.perturbed_answers for record in asked),
    }
    return {
        name: metric.needs
        for name, metric in METRICS.items()
        if asked and metric.needs and not has[metric.needs]
    }


def absent_sentences(probes: ProbeSet) -> list[str]:
    """What cannot be measured of what is to be forgotten, and for want of what."""
    absent = absent_metrics(probes)
    return [
        f"No record to be forgotten has {need}, so there is no "
        f"{' and no '.join(METRICS[name].title for name, other in absent.items() if other == need)}."
        for need in dict.fromkeys(absent.values())
    ]


def _retained(corpus: Corpus, life: Life, config: ProbesConfig, seed: int) -> list[Record]:
    """A few records of each client that joined and stayed, none of which anybody asked to forget."""
    gone = {event.clients[0] for event in life.events if event.kind == "leave"}
    gone |= {request.client for request in life.requests if request.scope == "client"}
    asked = {name for request in life.requests for name in request.record_ids}
    joined = sorted({c for event in life.events if event.kind == "join" for c in event.clients} - gone)
    chosen: list[Record] = []
    for client in joined:
        kept = [record for record in corpus.clients[client] if record.record_id not in asked]
        chosen.extend(_draw(kept, config.records_per_client, seed, "retain"))
    return _draw(chosen, config.max_retain, seed, "retain-all")


def _draw(records: Sequence[Record], count: int, seed: int, name: str) -> list[Record]:
    """``count`` records by keyed priority, in their own order; all when there are fewer."""
    if len(records) <= count:
        return list(records)
    priority = {r.record_id: uniform(seed, "probe", name, r.record_id) for r in records}
    kept = set(sorted(priority, key=lambda name: priority[name])[:count])
    return [record for record in records if record.record_id in kept]
