"""The same life on every engine: the same adapters and the same tables, up to rounding."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedsim.storage.directory import RunDirectory
from tests.e2e.runs import FEW_PROBES, SMALL, finish, merged, run, write_scenario

pytestmark = pytest.mark.slow

EVENTS = merged(
    SMALL,
    name="engines",
    data__clients=6,
    timeline=[
        {"join": {"clients": "0-4"}},
        {"train": {"rounds": 1}},
        {"join": {"clients": 5}},
        {"leave": {"client": 2}},
        {"forget": {"client": 1}},
        {"drop": {"clients": 0, "stage": "after_masking"}},
        {"train": {"rounds": 1}},
    ],
    compare=[{"method": "npo", "rounds": 1, "retain": "kl"}],
    privacy=[{"stage": "clip", "norm": 5.0}, {"stage": "secure_aggregation"}],
    probes=FEW_PROBES,
    execution__client_timeout=240,
)
"""Every kind of event, under masks; the drop is mended in some branches and aborts the round of others. Five
branches in six rounds, since a deployment takes seconds for each."""
DROPPED = ("client_failed", 0)
LONGER = merged(
    EVENTS,
    timeline=[*EVENTS["timeline"], {"train": {"rounds": 2}}],
    compare=[*EVENTS["compare"], {"method": "grad_ascent", "rounds": 1, "lr": 1e12, "epochs": 5}],
    federation__local__optimizer="sgd",
    privacy=[],
)
"""With a method on which the forgetting client fails."""
PRIVATE = merged(
    EVENTS,
    federation__weighting="uniform",
    federation__local__optimizer="spsa",
    privacy=[{"stage": "clip", "norm": 50.0}, {"stage": "client_dp", "noise_multiplier": 0.1, "delta": 1e-3}],
)
"""With the server's noise, and updates that are bytes where the clip leaves them."""


def on(engine: str, scenario: dict, **changes: object) -> dict:
    return merged(scenario, execution__engine=engine, execution__ray={"cpus": 2}, **changes)


def adapters(directory: RunDirectory) -> dict[str, dict[str, np.ndarray]]:
    root = directory.path / "checkpoints"
    return {str(path.relative_to(root)): load_file(path) for path in root.rglob("adapter_model.safetensors")}


STEPS = 16
"""Local steps that one adapter may have behind it in these lives: rounds times steps of a round."""
TERMS = 256
"""Terms of the longest sum in a product: the base's width, or the tokens of a batch."""


def rounding(array: np.ndarray) -> float:
    """How far an entry may be off when the same sums are added up in another order.

    The engines differ in that alone: cohorts take one product for all clients, workers one for each. An fp32
    sum of n terms is off by about sqrt(n) units of 2^-24 of its size, at worst n; each local step adds such
    an error to what the steps before it left, and both engines are off. The unit is that of the array's
    largest entry."""
    return 2 * STEPS * math.sqrt(TERMS) * 2.0**-24 * max(float(np.abs(array).max()), 2.0**-10)


def failures(directory: RunDirectory) -> set[tuple]:
    """Which client failed where, and what could not be measured."""
    faults = [event for event in directory.events() if event["kind"] in ("client_failed", "probe_failed")]
    return {(e["kind"], e.get("client"), e["branch"], e["round"]) for e in faults}


def assert_same_life(left: RunDirectory, right: RunDirectory, *, measured: bool) -> None:
    """Adapters and metrics agree; costs too, but for steps and tokens where they are not ``measured``."""
    ours, theirs = adapters(left), adapters(right)
    assert ours.keys() == theirs.keys()
    assert {name.split("/")[3] for name in ours} >= {"keep", "leave", "npo", "retrain-1"}
    for name, arrays in ours.items():
        for key, array in arrays.items():
            np.testing.assert_allclose(theirs[name][key], array, rtol=0, atol=rounding(array))
    first = ours[min(ours)]
    apart = [
        np.abs(first[key] - array).max() / rounding(array)
        for arrays in ours.values()
        for key, array in arrays.items()
    ]
    assert max(apart) > 100, "adapters that differ are told apart by far less than what they differ by"
    for table in ("metrics", "items", "trajectories", "costs"):
        for row, other in zip(*(d.table(table).to_pylist() for d in (left, right)), strict=True):
            for key, value in row.items():
                if not measured and key in ("client_steps", "tokens"):
                    assert other[key] is None
                elif isinstance(value, float) and not math.isnan(value):
                    assert other[key] == pytest.approx(value, abs=1e-5, rel=1e-5), (table, row, other)
                elif not isinstance(value, float):
                    assert other[key] == value, (table, row, other)
    assert failures(left) == failures(right)


def test_ray_lives_the_same_life(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    here = run(tmp_path / "here", LONGER)
    there = run(tmp_path / "there", on("ray", LONGER))
    assert_same_life(here, there, measured=True)
    assert ("client_failed", 1, "grad_ascent", 2) in failures(there)


def test_ray_lives_the_same_private_life(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    here = run(tmp_path / "here", PRIVATE)
    there = run(tmp_path / "there", on("ray", PRIVATE))
    assert_same_life(here, there, measured=True)
    assert here.json("ledger") == there.json("ledger")
    assert any(entry["releases"] for entry in there.json("ledger")["entries"])
    assert {failure[:2] for failure in failures(there)} == {DROPPED}


def test_a_deployment_lives_the_same_life(tmp_path: Path) -> None:
    here = run(tmp_path / "here", EVENTS)
    there = run(tmp_path / "there", on("deployment", EVENTS))
    assert_same_life(here, there, measured=False)
    assert {failure[:2] for failure in failures(there)} == {DROPPED}
    verdict = there.json("verdict")["rows"]
    assert all(row["cost_share"] is None and row["excess"] is not None for row in verdict)
    logs = {path.stem for path in (there.path / "logs").iterdir()}
    assert logs == {"superlink", "serverapp", "node-0", "node-0-worker", "node-1", "node-1-worker"}


RUN = """
import sys
from pathlib import Path
from fedsim.app import runs
from fedsim.storage.progress import Quiet
from fedsim.storage.directory import RunDirectory
from fedsim.scenario.file import load_scenario
directory = RunDirectory(Path(sys.argv[2]))
runs.execute(runs.prepare(load_scenario(Path(sys.argv[1])), directory), directory, Quiet())
"""


def start(folder: Path, scenario: dict) -> tuple[subprocess.Popen, RunDirectory]:
    """A run in a process of its own, as soon as its first round is saved."""
    directory = RunDirectory(folder / "run")
    command = [sys.executable, "-c", RUN, str(write_scenario(folder, scenario)), str(directory.path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (directory.path / "checkpoints/base/1/round-0001/keep").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process, directory


def relatives(text: str) -> set[int]:
    """Processes whose command line or environment names a folder."""
    found = set()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            told = (place / "cmdline").read_bytes() + (place / "environ").read_bytes()
        except OSError:
            continue
        if text.encode() in told:
            found.add(int(place.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks into /proc")
@pytest.mark.parametrize("engine", ["ray", "deployment"])
def test_an_interrupted_engine_leaves_nothing_behind(
    tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSIM_TEST", str(tmp_path))
    process, directory = start(tmp_path, on(engine, EVENTS))
    assert len(relatives(str(tmp_path))) > 1
    process.send_signal(signal.SIGINT)
    process.wait(timeout=30)
    deadline = time.monotonic() + 10
    while relatives(str(tmp_path)) - {os.getpid()}:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert {failure[:2] for failure in failures(directory)} <= {DROPPED}


def test_an_interrupted_ray_run_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    process, directory = start(tmp_path / "there", on("ray", EVENTS))
    process.kill()
    process.wait()
    finish(directory)
    assert_same_life(run(tmp_path / "here", EVENTS), directory, measured=True)
