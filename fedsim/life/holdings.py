"""Who holds how much, and what stands twice: what `validate` says of the data and `data.json` keeps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from statistics import median
from typing import Any

from fedsim.data.names import ClientNames
from fedsim.data.overlap import Overlap, find_overlap, overlap_sentences, public_text
from fedsim.data.records import Corpus
from fedsim.life.script import Life
from fedsim.life.shared_records import joining, request_sentences

_LISTED = 20
"""How many clients' numbers a sentence lists."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holdings:
    """Numbers of records by client, of holdout and public files, and their overlap over one life."""

    names: ClientNames
    records: Mapping[int, int]
    holdout: int
    public: Mapping[str, int]
    digest: str
    overlap: Overlap
    life: Life

    @classmethod
    def of(cls, corpus: Corpus, life: Life) -> Holdings:
        """Count and compare; of clients, those that join are compared."""
        return cls(
            names=corpus.names,
            records={client: len(held) for client, held in corpus.clients.items()},
            holdout=len(corpus.holdout),
            public={name: len(records) for name, records in corpus.public.items()},
            digest=_digest(corpus),
            overlap=find_overlap(corpus, joining(life)),
            life=life,
        )

    def sentences(self) -> list[str]:
        """Who holds how much, what clients are called, what stands twice, and what cannot be judged."""
        told = [self._spread(), *self._numbering()]
        absent = sorted(self.records.keys() - set(joining(self.life)))
        if absent:
            told.append(f"{self.names.range_text(absent)} never join{'s' if len(absent) == 1 else ''}.")
        if not self.holdout:
            told.append(
                "There is no holdout: whether the run is informative, and membership attacks, cannot be "
                "judged, since nothing shows how a model answers what it never saw."
            )
        if not self.public:
            told.append("There is no public data: what the base knew and may lose is not measured.")
        return told

    def repeated(self) -> list[str]:
        """What stands twice, and what that means for each request."""
        return [*overlap_sentences(self.overlap), *request_sentences(self.overlap, self.life)]

    def row(self) -> dict[str, Any]:
        """As JSON: clients in order of id with name and number of records, the other files, the overlap."""
        return {
            "clients": [
                {"client": client, "name": self.names.name(client), "records": count}
                for client, count in sorted(self.records.items())
            ],
            "holdout": self.holdout,
            "public": dict(self.public),
            "repeats": [
                [{"place": place, "record": record} for place, record in repeat.found]
                for repeat in self.overlap.repeats
            ],
            "sentences": self.repeated(),
        }

    def _spread(self) -> str:
        counts = self.records
        least, most = min(counts, key=lambda c: counts[c]), max(counts, key=lambda c: counts[c])
        total = sum(counts.values())
        middle = median(counts.values())
        if counts[least] == counts[most]:
            spread = f"{counts[least]} each"
        else:
            spread = (
                f"{counts[least]} ({self.names.text(least)}) to {counts[most]} ({self.names.text(most)}), "
                f"median {middle:g}"
            )
        public = "".join(f", {count} in {public_text(name)}" for name, count in self.public.items())
        clients = f"{len(counts)} client{'s hold' if len(counts) > 1 else ' holds'}"
        held = f"{total} record{'s' if total > 1 else ''}"
        return f"{clients} {held}: {spread}; {self.holdout} in the holdout{public}."

    def _numbering(self) -> list[str]:
        if self.names.are_numbers:
            return []
        listed = [f"{number} = {name}" for number, name in list(self.names.by_id.items())[:_LISTED]]
        more = len(self.names.by_id) - len(listed)
        rest = f" and {more} more" if more else ""
        return [f"Clients by number, in order of first appearance: {', '.join(listed)}{rest}."]


def _digest(corpus: Corpus) -> str:
    """SHA-256 of every record, of whose it is, and of what clients are called."""
    held = [
        *((str(client), records) for client, records in corpus.clients.items()),
        *corpus.public.items(),
        *corpus.asked.items(),
    ]
    told = [(who, [astuple(record) for record in records]) for who, records in held]
    whole = [told, [astuple(record) for record in corpus.holdout], sorted(corpus.names.by_id.items())]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()
