"""A checked scenario with its models loaded, and how its clients are reached."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from fedsim.data.records import Record
from fedsim.federation.client import make_client_app, train_together
from fedsim.federation.grid import InProcessGrid, RosterGrid
from fedsim.federation.runtime import ClientRuntime
from fedsim.model.adapter import AdapterModel
from fedsim.model.config import ModelConfig
from fedsim.model.loading import load_model
from fedsim.model.lora_starts import needs_records
from fedsim.scenario.file import LoadedScenario
from fedsim.training.cohorts import UNLIMITED, CohortLimit
from fedsim.training.memory import cohort_limit

Connect = Callable[[ClientRuntime, str, int], RosterGrid]
"""How the clients of a life are reached: from their runtime, the variant's name and the seed to a Grid."""


def in_process(runtime: ClientRuntime, variant: str, seed: int) -> RosterGrid:
    """Clients in this process."""
    return InProcessGrid(make_client_app(runtime), train_together=partial(train_together, runtime))


@dataclass(frozen=True, kw_only=True)
class CheckedScenario:
    """A checked scenario with everything loaded that does not depend on the seed.

    ``threads`` is None until it was measured; ``limits`` holds, by variant, what an earlier start of the same
    run has worked out. ``private`` says that some variant's releases are charged to budgets.
    """

    loaded: LoadedScenario
    devices: tuple[str, ...]
    threads: int | None = None
    limits: Mapping[str, CohortLimit] = field(default_factory=dict)
    connect: Connect = in_process
    private: bool = False
    models: dict[tuple[str, str], AdapterModel] = field(default_factory=dict, repr=False)

    def replicas(self, config: ModelConfig, public: Sequence[Record] = ()) -> list[AdapterModel]:
        """The model of a configuration on each device, loaded once; lives that share it run in turn.

        ``public`` are records that its adapter may start from.
        """
        used = public if config.lora is not None and needs_records(config.lora.init) else ()
        keys = [(f"{config.model_dump_json()}{_mark(used)}", device) for device in self.devices]
        for key in keys:
            if key not in self.models:
                self.models[key] = load_model(config, device=key[1], public=used)
        return [self.models[key] for key in keys]

    def limit(self, variant: str, model: AdapterModel) -> CohortLimit:
        """How many clients of a variant train at once."""
        wanted = self.loaded.scenario.execution.cohort
        if variant in self.limits:
            return self.limits[variant]
        if wanted == "auto":
            return cohort_limit(model, device=self.devices[0])
        return CohortLimit(clients=wanted, tokens=UNLIMITED)


def _mark(records: Sequence[Record]) -> str:
    """What tells the texts of records from others."""
    told = ([(turn.role, turn.text, turn.trained) for turn in record.earlier] for record in records)
    text = json.dumps([(r.question, r.answer, turns) for r, turns in zip(records, told, strict=True)])
    return hashlib.sha256(text.encode()).hexdigest()
