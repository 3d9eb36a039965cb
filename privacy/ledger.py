"""The ledger: an append-only record of every noisy release, from which any epsilon follows.

One ledger per branch of a life, across all rounds: a budget that is counted afresh each round is no
budget. The line of code that draws noise appends the release; nothing else does.

>>> ledger = Ledger()
>>> ledger.append(Release(round_id=1, branch="main", client="a", unit="example", noise_multiplier=1.0,
...                       sampling_rate=0.1, steps=50))
>>> round(ledger.epsilon("a", unit="example", delta=1e-3), 2)
3.31
>>> ledger.epsilon("b", unit="example", delta=1e-3)
0.0
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal

from privacy.accounting import Accountant, Composition, Mechanism, epsilon
from privacy.errors import LedgerError
from privacy.stage import Unit

EVERYONE = "*"
"""The client of a release that concerns everybody's data, such as noise on a total."""

VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """``steps`` equal noisy releases made in one attempt of one round about one client's data.

    ``unit`` is what the noise hides: one example, or the client's whole data. ``noise_multiplier`` is
    the standard deviation divided by the sensitivity. ``sampling`` "poisson" means that each unit took
    part independently at ``sampling_rate``. ``delta`` is a note for readers; epsilon is computed at
    whatever delta is asked.
    """

    round_id: int
    branch: str
    client: str
    unit: Unit
    noise_multiplier: float
    mechanism: Literal["gaussian"] = "gaussian"
    sampling: Literal["poisson", "none"] = "poisson"
    sampling_rate: float = 1.0
    steps: int = 1
    attempt: int = 0
    delta: float | None = None

    def __post_init__(self) -> None:
        choices = {
            "unit": ("example", "client"),
            "mechanism": ("gaussian",),
            "sampling": ("poisson", "none"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise LedgerError(f"{name}={getattr(self, name)!r} is unknown; choose one of {allowed}")
        if self.sampling == "none" and self.sampling_rate != 1.0:
            raise LedgerError(f"sampling_rate={self.sampling_rate} without sampling must be 1")
        if type(self.steps) is not int or self.steps < 1:
            raise LedgerError(f"steps={self.steps} must be a whole number of at least 1")
        try:
            self.charge()
        except (TypeError, ValueError) as error:
            raise LedgerError(str(error)) from error

    def charge(self) -> Mechanism:
        """What one of the steps costs."""
        return Mechanism(noise_multiplier=self.noise_multiplier, sampling_rate=self.sampling_rate)


class Ledger:
    """Releases, in the order in which they were made. Equal ones are kept as one with more steps.

    *Guarantees.* Nothing is ever removed or changed, so epsilon never falls. Two ledgers with the same
    releases give the same JSON, in whatever order they were written.

    *Edge cases.* A client without releases has epsilon 0. Releases of `EVERYONE` count for each client.
    """

    def __init__(self, releases: Iterable[Release] = ()) -> None:
        self._steps: dict[Release, int] = {}
        self._counts: dict[tuple[str, Unit], Counter[Mechanism]] = {}
        self.extend(releases)

    def append(self, release: Release) -> None:
        """Record a release."""
        key = replace(release, steps=1)
        self._steps[key] = self._steps.get(key, 0) + release.steps
        counts = self._counts.setdefault((release.client, release.unit), Counter())
        counts[release.charge()] += release.steps

    def extend(self, releases: Iterable[Release]) -> None:
        """Record several, such as those that a client sends back from its own ledger."""
        for release in releases:
            self.append(release)

    def releases(self, client: str | None = None) -> tuple[Release, ...]:
        """All releases, or those about one client."""
        return tuple(
            replace(key, steps=steps)
            for key, steps in self._steps.items()
            if client is None or key.client in (client, EVERYONE)
        )

    def since(self, known: Collection[Release]) -> tuple[Release, ...]:
        """The releases that are not among those ``known`` earlier."""
        return tuple(release for release in self.releases() if release not in known)

    def composition(self, client: str, *, unit: Unit, extra: Iterable[Release] = ()) -> Composition:
        """How often each mechanism touched this client's unit, with ``extra`` on top."""
        total: Counter[Mechanism] = Counter()
        for name in {client, EVERYONE}:
            total.update(self._counts.get((name, unit), Counter()))
        for release in extra:
            if release.client in (client, EVERYONE) and release.unit == unit:
                total[release.charge()] += release.steps
        return tuple(sorted(total.items()))

    def epsilon(self, client: str, *, unit: Unit, delta: float, accountant: Accountant = "pld") -> float:
        """Epsilon in nats spent on ``client`` so far, per ``unit``, at ``delta``."""
        return epsilon(self.composition(client, unit=unit), delta=delta, accountant=accountant)

    def would_exceed(
        self,
        release: Release,
        *,
        max_epsilon: float,
        delta: float,
        accountant: Accountant = "pld",
    ) -> bool:
        """Whether ``release`` (a whole training of ``steps`` steps) would lift its client's epsilon above
        ``max_epsilon``. Changes nothing."""
        total = self.composition(release.client, unit=release.unit, extra=(release,))
        return epsilon(total, delta=delta, accountant=accountant) > max_epsilon

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
            if not isinstance(row, dict) or set(row) != known:
                raise LedgerError(f"release {row} must have exactly the fields {sorted(known)}")
        return cls(Release(**row) for row in rows)
