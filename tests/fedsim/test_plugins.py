"""What other packages add: a small one with a method, a metric and an audit, in a folder of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedsim.storage.directory import RunDirectory

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
MORE = '''
from typing import ClassVar, Literal

from fedsim.audits.protocol import AuditConfig
from fedsim.metrics.metric import Metric


class Surprise(Metric):
    """Twice the NLL."""

    name: ClassVar[str] = "surprise"
    title: ClassVar[str] = "surprise"
    summary: ClassVar[str] = "twice the NLL"
    unit: ClassVar[str] = "nats"
    known_is_higher: ClassVar[bool] = {rises}
    headline: ClassVar[bool] = {quoted}

    @staticmethod
    def compute(answers):
        own = answers.mask_IA
        return -2 * (answers.log_probs_IA * own).sum(-1) / own.sum(-1)


class Census(AuditConfig):
    """Counts what each branch has trained."""

    summary: ClassVar[str] = "count parameters"
    audit: Literal["census"] = "census"

    def rows(self, life, part):
        for branch in life.branches:
            size = sum(value.size for value in life.adapter(branch).values())
            yield life.row(audit=self.audit, branch=branch, size=size)
'''
SCENARIO = """
name: t
data: {source: authors, clients: 3}
timeline: [join: {clients: 0-2}, train: {rounds: 1}, forget: {client: 1}, train: {rounds: 2}]
compare: [wait]
"""


def install(
    site: Path, *, name: str = "wait", value: str = "waiting:Wait", rises: bool = False, quoted: bool = False
) -> None:
    """What an installer leaves: modules and the metadata of their package."""
    (site / "waiting.py").write_text(METHOD.replace("{name}", name))
    (site / "counting.py").write_text(MORE.format(rises=rises, quoted=quoted))
    about = site / "waiting-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: waiting\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        f"[fedsim.methods]\nwait = {value}\n"
        "[fedsim.metrics]\nsurprise = counting:Surprise\n"
        "[fedsim.audits]\ncensus = counting:Census\n"
    )


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


@pytest.mark.slow
def test_a_run_measures_and_attacks_with_what_others_wrote(tmp_path: Path) -> None:
    install(tmp_path)
    scenario = tmp_path / "s.yaml"
    scenario.write_text(SCENARIO + "audits: [{audit: census}]\nprobes: {every: 9, generate: never}\n")
    done = fedsim(tmp_path, "run", str(scenario), "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    directory = RunDirectory(tmp_path / "run")
    rows = directory.json("audits")["census"]
    assert {row["branch"] for row in rows} == {"keep", "leave", "retrain", "wait"}
    assert len({row["size"] for row in rows}) == 1
    values = {
        (row["branch"], row["round"], row["subject"], row["metric"]): row["value"]
        for row in directory.table("metrics").to_pylist()
    }
    found = {key[:3]: value for key, value in values.items() if key[3] == "surprise"}
    assert len(found) > 10
    for who, value in found.items():
        assert value == pytest.approx(2 * values[(*who, "nll")])


def test_a_headline_must_rise_with_knowledge(tmp_path: Path) -> None:
    install(tmp_path, quoted=True)
    done = fedsim(tmp_path, "list")
    assert done.returncode != 0
    assert "metric surprise: a headline is from 0 to 1 and rises with knowledge" in done.stderr


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
