"""Small scenarios and how to run them: what the end-to-end tests stand on."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsim.app import runs
from fedsim.assembly.simulation import CheckedScenario
from fedsim.federation.orders import WorkOrder
from fedsim.federation.runtime import ClientRuntime
from fedsim.scenario.file import load_scenario
from fedsim.storage.directory import RunDirectory
from fedsim.storage.progress import Quiet

TABLES = ("metrics.parquet", "items.parquet", "answers.parquet", "trajectories.parquet", "costs.parquet")
RESULTS = (*TABLES, "verdict.json", "privacy.json", "ledger.json", "life.json", "scenario.yaml")

FEW_PROBES = {
    "every": 100,
    "records_per_client": 1,
    "max_retain": 2,
    "max_holdout": 2,
    "max_public": 2,
    "generate": "never",
}
SMALL = {
    "name": "small",
    "model": {"base": "tiny-authors", "lora": {"r": 2, "alpha": 4}},
    "data": {"source": "authors", "clients": 5, "holdout_authors": 2, "public_authors": 2},
    "federation": {"participation": 0.7, "local": {"epochs": 1, "batch_size": 9, "lr": 5e-3}},
    "execution": {"device": "cpu", "threads": 1, "checkpoint_every": 2},
}
LIFE = SMALL | {
    "timeline": [
        {"join": {"clients": "0-3"}},
        {"train": {"rounds": 2}},
        {"join": {"clients": 4}},
        {"train": {"rounds": 1}},
        {"forget": {"client": 1}},
        {"train": {"rounds": 2}},
        {"forget": {"client": 2, "fraction": 0.5}},
        {"train": {"rounds": 2}},
    ],
    "compare": [{"method": "grad_diff", "rounds": 1}, {"method": "npo", "rounds": 2, "retain": "kl"}],
    "probes": FEW_PROBES,
    "execution": SMALL["execution"] | {"cohort": 1},
}
BRIEF = SMALL | {
    "name": "brief",
    "data": {"source": "authors", "clients": 3, "holdout_authors": 2, "public_authors": 2},
    "federation": {"participation": 1.0, "local": {"epochs": 1, "batch_size": 9, "lr": 5e-3}},
    "timeline": [
        {"join": {"clients": "0-2"}},
        {"train": {"rounds": 1}},
        {"forget": {"client": 1}},
        {"train": {"rounds": 1}},
    ],
    "probes": FEW_PROBES,
}


def merged(base: dict, **changes: object) -> dict:
    """A copy of a scenario with some of its keys replaced; dotted keys are written with two underscores."""
    data = copy.deepcopy(base)
    for path, value in changes.items():
        place = data
        *above, last = path.split("__")
        for key in above:
            place = place.setdefault(key, {})
        place[last] = value
    return data


def write_scenario(folder: Path, scenario: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "scenario.yaml"
    path.write_text(json.dumps(scenario))  # JSON is YAML
    return path


def run(
    folder: Path, scenario: dict, before: Callable[[CheckedScenario], None] | None = None
) -> RunDirectory:
    """Run a scenario in ``folder`` to its end."""
    directory = RunDirectory(folder / "run")
    simulation = runs.prepare(load_scenario(write_scenario(folder, scenario)), directory)
    if before is not None:
        before(simulation)
    runs.execute(simulation, directory, Quiet())
    return directory


def broken_off(folder: Path, scenario: dict, monkeypatch: pytest.MonkeyPatch, round_: int) -> RunDirectory:
    """Run a scenario until somebody in a round looks at its order, and go on from the last checkpoint."""
    select = ClientRuntime.select

    def breaking(self: ClientRuntime, client: int, order: WorkOrder) -> list[int]:
        if order.round == round_:
            raise KeyboardInterrupt
        return select(self, client, order)

    with monkeypatch.context() as patched:
        patched.setattr(ClientRuntime, "select", breaking)
        with pytest.raises(KeyboardInterrupt):
            run(folder, scenario)
    directory = RunDirectory(folder / "run")
    assert not directory.file("verdict.json").exists()
    finish(directory)
    return directory


def finish(directory: RunDirectory) -> None:
    """Go on with a run that was interrupted."""
    runs.execute(runs.reopen(directory), directory, Quiet())


def differences(left: RunDirectory, right: RunDirectory, names: tuple[str, ...] = RESULTS) -> list[str]:
    """The result files that are not byte-identical."""
    return [name for name in names if left.file(name).read_bytes() != right.file(name).read_bytes()]


def adapter(
    directory: RunDirectory, round_: int, branch: str, *, variant: str = "base", seed: int = 1
) -> bytes:
    """The bytes of a checkpointed adapter."""
    place = directory.path / "checkpoints" / variant / str(seed) / f"round-{round_:04d}" / branch / "adapter"
    names = ("adapter_model.safetensors", "model.safetensors")
    (found,) = [place / name for name in names if (place / name).exists()]
    return found.read_bytes()
