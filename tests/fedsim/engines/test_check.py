"""What an engine needs is said before anything starts, with the way out."""

from pathlib import Path

import pytest
import torch

from fedsim.app import runs
from fedsim.assembly.build import load_and_check
from fedsim.assembly.engine_check import check_engine, gpus_per_worker
from fedsim.assembly.simulation import CheckedScenario
from fedsim.scenario.execution import ExecutionConfig, RayConfig
from fedsim.scenario.file import ScenarioError, load_scenario
from fedsim.storage.directory import RunDirectory
from fedsim.storage.progress import Quiet
from tests.e2e.runs import BRIEF, merged, write_scenario


def ray(**settings: object) -> ExecutionConfig:
    return ExecutionConfig(engine="ray", ray=RayConfig(**settings))


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_every_engine_can_run_here() -> None:
    for engine in ("in-process", "deployment"):
        check_engine(ExecutionConfig(engine=engine), "cpu")
    pytest.importorskip("ray")
    check_engine(ray(), "cpu")


def test_a_missing_ray_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"install it with: .*\[simulation\]"):
        check_engine(ray(), "cpu")
    check_engine(ExecutionConfig(), "cpu")


def test_missing_programs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path: None)
    with pytest.raises(ValueError, match="flower-superlink"):
        check_engine(ExecutionConfig(engine="deployment"), "cpu")


def test_workers_that_fit_nowhere_are_refused() -> None:
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match=r"cpus_per_worker=3 is more than the 2 CPUs"):
        check_engine(ray(cpus=2, cpus_per_worker=3), "cpu")
    with pytest.raises(ValueError, match="is more than the"):
        check_engine(ray(gpus_per_worker=torch.cuda.device_count() + 1.0), "cpu")
    with pytest.raises(ValueError, match="need a share of a GPU"):
        check_engine(ray(gpus_per_worker=0.0), "cuda:0")


def test_a_cluster_has_its_own_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    check_engine(ray(address="10.0.0.1:6379", cpus_per_worker=10_000), "cpu")
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(ValueError, match=r"ray\.cpus=2: a running cluster has its own"):
        check_engine(ray(cpus=2), "cpu")


def test_a_worker_has_a_gpu_where_the_device_is_one() -> None:
    assert gpus_per_worker(RayConfig(), "cpu") == 0
    assert gpus_per_worker(RayConfig(), "cuda:0") == 1
    assert gpus_per_worker(RayConfig(gpus_per_worker=0.25), "cuda:0") == 0.25


PRIVATE = merged(
    BRIEF,
    privacy=[{"stage": "example_dp", "noise_multiplier": 1.0, "delta": 1e-3, "clip_norm": 1.0}],
    federation__weighting="uniform",
    execution__engine="deployment",
)
ONCE = merged(PRIVATE, timeline=BRIEF["timeline"][:2], compare=["keep"])


def checked(folder: Path, scenario: dict) -> CheckedScenario:
    return load_and_check(load_scenario(write_scenario(folder, scenario)))


def test_a_private_deployment_lives_once(tmp_path: Path) -> None:
    """Each branch and seed would be another release of the same data, by noise that no one ledger knows."""
    with pytest.raises(ScenarioError, match=r"execution.engine: .* 3 branches"):
        checked(tmp_path, PRIVATE)
    with pytest.raises(ScenarioError, match=r"execution.engine: .* 2 branches"):
        checked(tmp_path, merged(ONCE, seeds=[1, 2]))
    assert checked(tmp_path, ONCE).private
    assert not checked(tmp_path, merged(PRIVATE, privacy=[])).private
    assert checked(tmp_path, merged(PRIVATE, execution__engine="in-process")).private


def test_a_private_deployment_cannot_go_on(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    simulation = runs.prepare(load_scenario(write_scenario(tmp_path, ONCE)), directory)
    directory.log("started", time="now")
    before = directory.events()
    with pytest.raises(ScenarioError, match="without being in any ledger"):
        runs.execute(simulation, directory, Quiet())
    assert directory.events() == before
