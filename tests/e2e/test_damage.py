"""Runs that were tampered with, edited, or are being written by somebody else."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedsim.app import runs
from fedsim.app.cli import app
from fedsim.data.authors import load_authors
from fedsim.federation.orders import WorkOrder
from fedsim.federation.runtime import ClientRuntime
from fedsim.life.holdings import Holdings
from fedsim.life.script import Life
from fedsim.scenario.file import ScenarioError, load_scenario
from fedsim.storage.directory import RunDirectory
from fedsim.storage.manifest import damage, seal
from fedsim.storage.whole import folder_name
from fedsim.storage.writer import collect_leftovers, only_writer
from tests.e2e.runs import BRIEF, LIFE, differences, finish, merged, run, write_scenario

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", name="whole")
def _whole(tmp_path_factory) -> RunDirectory:
    return run(tmp_path_factory.mktemp("whole"), LIFE)


@pytest.fixture(scope="module", name="broken")
def _broken(tmp_path_factory) -> Path:
    """The same run, interrupted in its seventh round."""
    folder = tmp_path_factory.mktemp("broken")
    select = ClientRuntime.select

    def breaking(self: ClientRuntime, client: int, order: WorkOrder) -> list[int]:
        if order.round == 7:
            raise KeyboardInterrupt
        return select(self, client, order)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ClientRuntime, "select", breaking)
        with pytest.raises(KeyboardInterrupt):
            run(folder, LIFE)
    return folder / "run"


@pytest.fixture(name="copy")
def _copy(broken: Path, tmp_path: Path) -> RunDirectory:
    shutil.copytree(broken, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def last_checkpoint(directory: RunDirectory) -> Path:
    return sorted(directory.path.glob("checkpoints/base/1/round-*/npo"))[-1]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


HARM = {
    "adapter/adapter_model.safetensors": flip,
    "metrics.parquet": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "ledger.json": lambda path: path.write_text(path.read_text() + " "),
    "state.json": Path.unlink,
    "manifest.json": lambda path: path.write_text("[]"),
}


@pytest.mark.parametrize("name", HARM)
def test_a_damaged_checkpoint_is_not_used(name: str, whole: RunDirectory, copy: RunDirectory) -> None:
    HARM[name](last_checkpoint(copy) / name)
    finish(copy)
    told = [event for event in copy.events() if event["kind"] == "checkpoint_damaged"]
    assert told
    assert f"npo: {name} " in told[0]["reason"]
    assert differences(whole, copy) == []


def test_when_no_checkpoint_is_whole_the_run_begins_again(whole: RunDirectory, copy: RunDirectory) -> None:
    for path in copy.path.glob("checkpoints/base/1/round-*/*/state.json"):
        path.write_text("{}")
    finish(copy)
    assert {e["goes_on_from"] for e in copy.events() if e["kind"] == "checkpoint_damaged"} == {None}
    assert differences(whole, copy) == []


def test_what_a_killed_attempt_left_behind_is_collected(whole: RunDirectory, copy: RunDirectory) -> None:
    left = copy.path / "checkpoints/base/1/round-0007/npo"
    shutil.copytree(last_checkpoint(copy), left)
    half = copy.path / "checkpoints/base/1/.npo.0123abcd.tmp"
    half.mkdir()
    (copy.path / ".metrics.parquet.0123abcd.tmp").write_text("half")
    finish(copy)
    assert differences(whole, copy) == []
    assert not list(copy.path.rglob("*.tmp"))
    names = [sorted(p.relative_to(d.path) for p in d.path.glob("checkpoints/*/*/*/*")) for d in (whole, copy)]
    assert names[0] == names[1]


def test_what_was_being_replaced_comes_back(tmp_path: Path) -> None:
    """Killed between moving the old directory away and the new one in."""
    old = tmp_path / ".npo.0123abcd.old"
    old.mkdir()
    (old / "state").write_text("kept")
    collect_leftovers(tmp_path)
    assert (tmp_path / "npo" / "state").read_text() == "kept"
    assert not old.exists()


def test_an_edited_scenario_is_refused_with_its_keys(copy: RunDirectory) -> None:
    file = copy.file("scenario.yaml")
    text = file.read_text()
    assert "lr: 0.005" in text
    file.write_text(text.replace("lr: 0.005", "lr: 0.004"))
    before = sorted(copy.path.rglob("*"))
    with pytest.raises(ScenarioError, match=r"was changed since the run began, at federation\.local\.lr;"):
        runs.reopen(copy)
    assert sorted(copy.path.rglob("*")) == before
    file.write_text(f"# a comment changes nothing\n{text}")
    runs.reopen(copy)


def test_other_settings_in_one_directory_are_named(copy: RunDirectory, tmp_path: Path) -> None:
    other = load_scenario(write_scenario(tmp_path, merged(LIFE, federation__local__epochs=2)))
    with pytest.raises(ScenarioError, match=r"different: federation\.local\.epochs"):
        runs.prepare(other, copy)


HOLD = """
import sys, time
from pathlib import Path
from fedsim.storage.writer import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_run_has_one_writer_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ScenarioError, match=rf"another fedsim \(process {holder.pid}\) is writing"):
        only_writer(tmp_path).__enter__()
    holder.kill()
    holder.wait()
    with only_writer(tmp_path):
        pass


def test_a_changed_result_is_said_and_the_verdict_still_shown(whole: RunDirectory, tmp_path: Path) -> None:
    shutil.copytree(whole.path, tmp_path / "run")
    flip(tmp_path / "run" / "ledger.json")
    result = CliRunner().invoke(app, ["resume", str(tmp_path / "run")])
    assert "ledger.json is not as it was written since the run ended" in result.stderr


@pytest.mark.parametrize("name", ["verdict.json", "metrics.parquet", "life.json"])
def test_a_damaged_result_is_named(name: str, whole: RunDirectory, tmp_path: Path) -> None:
    shutil.copytree(whole.path, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(b"\x00{")
    result = CliRunner().invoke(app, ["report", str(tmp_path / "run")])
    assert result.exit_code == 2, result.output
    assert f"{name}: cannot be read as" in result.stderr


def test_a_missing_table_is_named(whole: RunDirectory, tmp_path: Path) -> None:
    """An empty one would give a report without figures, and no word why."""
    shutil.copytree(whole.path, tmp_path / "run")
    (tmp_path / "run" / "items.parquet").unlink()
    result = CliRunner().invoke(app, ["report", str(tmp_path / "run")])
    assert result.exit_code == 2, result.output
    assert "items.parquet: is missing from this finished run" in result.stderr


@pytest.mark.parametrize(
    "name", ["verdict.json", "metrics.parquet", "costs.parquet", "life.json", "privacy.json", "data.json"]
)
def test_a_finished_run_with_a_damaged_file_is_said_and_does_not_crash(
    name: str, whole: RunDirectory, tmp_path: Path
) -> None:
    shutil.copytree(whole.path, tmp_path / "run")
    path = tmp_path / "run" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    result = CliRunner().invoke(app, ["resume", str(tmp_path / "run")])
    assert f"{name} is not as it was written" in result.stderr
    assert result.exception is None or isinstance(result.exception, SystemExit)
    if name not in ("verdict.json", "life.json"):
        assert "Request 1: client 1 asks to be forgotten" in result.stdout


def test_a_report_of_changed_results_says_so(whole: RunDirectory, tmp_path: Path) -> None:
    shutil.copytree(whole.path, tmp_path / "run")
    file = tmp_path / "run" / "verdict.json"
    file.write_text(file.read_text().replace('"seed": 1', '"seed": 1 ', 1))
    result = CliRunner().invoke(app, ["report", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert "verdict.json is not as it was written since the run ended" in result.stderr


@pytest.mark.parametrize("what", ["the data", "the base"])
def test_a_run_does_not_go_on_with_other_data_or_another_base(copy: RunDirectory, what: str) -> None:
    """The scenario is the same; what stands in its files is not."""
    data = copy.json("data")
    data["lives"][0]["digests"][what] = "0" * 64
    copy.write_json("data", data)
    with pytest.raises(ScenarioError, match=f"{what} changed since the run began"):
        finish(copy)


def test_other_records_have_another_digest() -> None:
    corpus, life = load_authors(clients=2), Life(horizon=1, events=(), requests=())
    one = Holdings.of(corpus, life).digest
    first = corpus.clients[0]
    changed = replace(first[0], answer=first[0].answer + ".")
    other = replace(corpus, clients={**corpus.clients, 0: (changed, *first[1:])})
    assert Holdings.of(load_authors(clients=2), life).digest == one
    assert Holdings.of(other, life).digest != one


def test_a_manifest_by_hand(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("abc")
    seal(tmp_path)
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    assert json.loads((tmp_path / "manifest.json").read_text()) == {"a": digest}
    assert damage(tmp_path) is None
    (tmp_path / "a").write_text("abd")
    assert damage(tmp_path) == "a is not as it was written"
    (tmp_path / "a").unlink()
    assert damage(tmp_path) == "a is missing"


def test_a_label_longer_than_a_file_name(tmp_path: Path) -> None:
    label = "npo-" + "x" * 396
    method = {"method": "npo", "rounds": 1, "label": label}
    directory = run(tmp_path, merged(BRIEF, compare=[method]))
    assert label in {row["branch"] for row in directory.json("verdict")["rows"]}
    assert list(directory.path.glob(f"checkpoints/base/1/round-0002/{folder_name(label)}"))


def test_long_names_stay_apart() -> None:
    assert folder_name("x" * 300) != folder_name("x" * 299)
    assert len(folder_name("é" * 300).encode()) < 80


def test_what_stops_a_run_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_scenario(tmp_path, BRIEF)
    out = tmp_path / "a[/x]"
    for raised, code, said in (
        (KeyboardInterrupt(), 130, f"interrupted; go on with: fedsim resume {out}"),
        (OSError(28, "No space left on device", str(out / "x")), 1, f"{out / 'x'}: No space left on device"),
    ):

        def stopping(*_: object, error: BaseException = raised) -> None:
            raise error

        monkeypatch.setattr("fedsim.app.runs.live", stopping)
        result = CliRunner().invoke(app, ["run", str(file), "--out", str(out)])
        assert result.exit_code == code, result.output
        assert said in result.stderr
        assert f"fedsim resume {out}" in result.stderr
    monkeypatch.undo()
    finish(RunDirectory(out))
