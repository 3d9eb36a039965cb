"""The ledger: an append-only record of every noisy release, from which any epsilon follows.

One ledger per branch of a life, across all rounds: a budget that is counted afresh each round is no
budget. The line of code that draws noise appends the release; nothing else does.

>>> ledger = Ledger()
>>> ledger.append(Release(round_id=1, branch="main", clients=("a",), unit="example", noise_multiplier=1.0,
...                       sampling_rate=0.1, steps=50))
>>> round(ledger.epsilon("a", unit="example", delta=1e-3), 2)
3.31
>>> ledger.epsilon("b", unit="example", delta=1e-3)
0.0
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import get_args

from privacy.accounting import Accountant, Composition, Kind, Mechanism, Neighbours, Sampling, epsilon
from privacy.errors import LedgerError
from privacy.units import Unit

VERSION = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """``steps`` equal noisy releases made in one attempt of one round about the data of each of ``clients``.

    ``unit`` is what the noise hides: one example, or a client's whole data. What was drawn and how is said in
    the terms of `Mechanism`. Noise on a sum concerns all who could have been drawn for it, whether they were
    or not. ``delta`` is a note for readers; epsilon is computed at whatever delta is asked.
    """

    round_id: int
    branch: str
    clients: tuple[str, ...]
    unit: Unit
    noise_multiplier: float
    mechanism: Kind = "gaussian"
    sampling: Sampling = "poisson"
    sampling_rate: float = 1.0
    population: int = 0
    sample_size: int = 0
    neighbours: Neighbours = "add_remove"
    excess: float = 0.0
    steps: int = 1
    attempt: int = 0
    delta: float | None = None

    def __post_init__(self) -> None:
        if self.unit not in ("example", "client"):
            raise LedgerError(f"unit={self.unit!r} is unknown; choose 'example' or 'client'")
        if type(self.steps) is not int or self.steps < 1:
            raise LedgerError(f"steps={self.steps} must be a whole number of at least 1")
        names = all(isinstance(name, str) for name in self.clients)
        if not self.clients or not names or len(set(self.clients)) != len(self.clients):
            raise LedgerError(f"clients={self.clients} must be one or more names, each once")
        try:
            self.charge()
        except (TypeError, ValueError) as error:
            raise LedgerError(str(error)) from error

    @classmethod
    def of(
        cls,
        mechanism: Mechanism,
        *,
        round_id: int,
        branch: str,
        attempt: int,
        clients: tuple[str, ...],
        unit: Unit,
        steps: int = 1,
        delta: float | None = None,
    ) -> Release:
        """The release of a mechanism's noise about these clients."""
        return cls(
            round_id=round_id,
            branch=branch,
            attempt=attempt,
            clients=clients,
            unit=unit,
            steps=steps,
            delta=delta,
            noise_multiplier=mechanism.noise_multiplier,
            mechanism=mechanism.kind,
            sampling=mechanism.sampling,
            sampling_rate=mechanism.sampling_rate,
            population=mechanism.population,
            sample_size=mechanism.sample_size,
            neighbours=mechanism.neighbours,
            excess=mechanism.excess,
        )

    def charge(self) -> Mechanism:
        """What one of the steps costs."""
        return Mechanism(
            noise_multiplier=self.noise_multiplier,
            sampling_rate=self.sampling_rate,
            sampling=self.sampling,
            population=self.population,
            sample_size=self.sample_size,
            neighbours=self.neighbours,
            kind=self.mechanism,
            excess=self.excess,
        )


class Ledger:
    """Releases, in the order in which they were made. Equal ones are kept as one with more steps.

    *Guarantees.* Nothing is ever removed or changed, so epsilon never falls. Two ledgers with the same
    releases give the same JSON, in whatever order they were written.

    *Edge cases.* A client without releases has epsilon 0.
    """

    def __init__(self, releases: Iterable[Release] = ()) -> None:
        self._steps: dict[Release, int] = {}
        self._counts: dict[tuple[str, Unit], Counter[Mechanism]] = {}
        self.extend(releases)

    def append(self, release: Release) -> None:
        """Record a release."""
        key = replace(release, steps=1)
        self._steps[key] = self._steps.get(key, 0) + release.steps
        charge = release.charge()
        for client in release.clients:
            self._counts.setdefault((client, release.unit), Counter())[charge] += release.steps

    def extend(self, releases: Iterable[Release]) -> None:
        """Record several, such as those that a client sends back from its own ledger."""
        for release in releases:
            self.append(release)

    def releases(self) -> tuple[Release, ...]:
        """All releases."""
        return tuple(replace(key, steps=steps) for key, steps in self._steps.items())

    def past(self, client: str) -> Ledger:
        """What a client must know to keep to its budgets.

        It is one release per mechanism however long it was there: every epsilon of its own is the same, no
        other client is named, ``branch`` is empty.
        """
        return Ledger(
            Release.of(charge, round_id=0, branch="", attempt=0, clients=(client,), unit=unit, steps=steps)
            for unit in get_args(Unit)
            for charge, steps in self.composition(client, unit=unit)
        )

    def clients(self, *, unit: Unit) -> tuple[str, ...]:
        """Who was charged for a unit at least once."""
        return tuple(sorted(client for client, charged in self._counts if charged == unit))

    def since(self, known: Collection[Release]) -> tuple[Release, ...]:
        """The releases that are not among those ``known`` earlier."""
        return tuple(release for release in self.releases() if release not in known)

    def composition(self, client: str, *, unit: Unit, extra: Iterable[Release] = ()) -> Composition:
        """How often each mechanism touched this client's unit, with ``extra`` on top."""
        total = Counter(self._counts.get((client, unit), Counter()))
        for release in extra:
            if client in release.clients and release.unit == unit:
                total[release.charge()] += release.steps
        return tuple(sorted(total.items()))

    def epsilon(self, client: str, *, unit: Unit, delta: float, accountant: Accountant = "pld") -> float:
        """Epsilon in nats spent on ``client`` so far, per ``unit``, at ``delta``."""
        return epsilon(self.composition(client, unit=unit), delta=delta, accountant=accountant)

    def would_exceed(
        self,
        *releases: Release,
        max_epsilon: float,
        delta: float,
        accountant: Accountant = "pld",
    ) -> bool:
        """Whether ``releases`` together would lift a client's epsilon above ``max_epsilon``.

        They are whole trainings of their ``steps``. Changes nothing.
        """
        totals = {
            self.composition(client, unit=release.unit, extra=releases)
            for release in releases
            for client in release.clients
        }
        return any(epsilon(total, delta=delta, accountant=accountant) > max_epsilon for total in totals)

    def agrees_with(self, other: Ledger) -> bool:
        """Whether both hold the same releases.

        How another machine rounds what noise was calibrated to makes no difference.
        """
        mine, theirs = self.releases(), other.releases()
        if len(mine) != len(theirs):
            return False
        pairs = ((mine, theirs), (theirs, mine))
        return all(any(_alike(one, two) for two in others) for ones, others in pairs for one in ones)

    def fork(self) -> Ledger:
        """A copy for a branch; neither sees what the other appends."""
        return Ledger(self.releases())

    def to_json(self) -> str:
        """Canonical JSON: one release a line, sorted, from which anyone can account again."""
        rows = sorted(json.dumps(asdict(release), sort_keys=True) for release in self.releases())
        body = ",\n".join(f"    {row}" for row in rows)
        return f'{{\n  "version": {VERSION},\n  "releases": [\n{body}\n  ]\n}}\n'

    @classmethod
    def from_json(cls, text: str) -> Ledger:
        """Read what `to_json` wrote; `LedgerError` on anything else."""
        try:
            content = json.loads(text)
            version, rows = content["version"], content["releases"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise LedgerError(f"not a ledger: {error}") from error
        if version != VERSION:
            raise LedgerError(f"version={version!r} is unknown; this reads version {VERSION}")
        known = {field.name for field in fields(Release)}
        for row in rows:
            if not isinstance(row, dict) or set(row) != known or not isinstance(row["clients"], list):
                raise LedgerError(f"release {row} must have exactly the fields {sorted(known)}")
        return cls(Release(**{**row, "clients": tuple(row["clients"])}) for row in rows)


def _alike(left: Release, right: Release) -> bool:
    """Equal but for rounding in what is calibrated."""
    calibrated = ("noise_multiplier", "sampling_rate", "excess")
    other = {name: getattr(right, name) for name in calibrated}
    near = all(math.isclose(getattr(left, n), value, rel_tol=1e-6) for n, value in other.items())
    return near and replace(left, **other) == right
