"""Methods and algorithms of other packages: a small one, installed into a folder of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

METHOD = '''
from typing import ClassVar, Literal

from fedsim.training.objectives import LocalWork, MeanNll
from fedsim.unlearning.protocol import MethodConfig, RoundPlan, Work


class Wait(MethodConfig):
    """Asks the others to train once more."""

    title: ClassVar[str] = "Wait"
    summary: ClassVar[str] = "one more round of the others"
    method: Literal["{name}"] = "{name}"

    def rounds_for(self, request):
        return 1

    def plan(self, request, index):
        return RoundPlan(helper=Work(weight=1.0))

    def local(self, role, index):
        return LocalWork(MeanNll())
'''
SCENARIO = """
name: t
data: {source: authors, clients: 3}
timeline: [join: {clients: 0-2}, train: {rounds: 1}, forget: {client: 1}, train: {rounds: 2}]
compare: [wait]
"""


def install(site: Path, *, name: str = "wait", value: str = "waiting:Wait") -> None:
    """What an installer leaves: a module and the metadata of its package."""
    (site / "waiting.py").write_text(METHOD.replace("{name}", name))
    about = site / "waiting-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: waiting\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[fedsim.methods]\nwait = {value}\n")


def fedsim(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), str(Path(__file__).parents[2])])
    command = [sys.executable, "-m", "fedsim", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path}
    )


def test_a_method_of_another_package_is_listed_checked_and_in_the_schema(tmp_path: Path) -> None:
    install(tmp_path)
    assert "one more round of the others" in fedsim(tmp_path, "list").stdout
    scenario = tmp_path / "s.yaml"
    scenario.write_text(SCENARIO)
    done = fedsim(tmp_path, "validate", str(scenario))
    assert done.returncode == 0, done.stderr
    fedsim(tmp_path, "schema", "--out", str(tmp_path / "schema.json"))
    assert '"wait"' in (tmp_path / "schema.json").read_text()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("npo", "waiting:Wait", "is called 'npo', as one of fedsim.unlearning.methods.npo is"),
        ("wait", "waiting:METHOD", "cannot be loaded: AttributeError"),
        ("wait", "waiting:Literal", "must be a MethodConfig"),
    ],
)
def test_an_entry_point_that_cannot_be_used_is_named(
    tmp_path: Path, name: str, value: str, reason: str
) -> None:
    install(tmp_path, name=name, value=value)
    done = fedsim(tmp_path, "list")
    assert done.returncode != 0
    assert f"entry point 'wait' of fedsim.methods ({value}) {reason}" in done.stderr
