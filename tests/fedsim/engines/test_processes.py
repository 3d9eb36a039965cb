"""Programs that run beside this one, and progress that is told through a file."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedsim.engines.errors import EngineError
from fedsim.engines.processes import Processes, free_ports, shared, wait_for_port
from fedsim.engines.relay import RelayedProgress, Replay

FAMILY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""
"""A program with a child of its own, whose process id it prints."""


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be collected does not."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def wait_until(true, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def printed_pid(log: Path) -> int:
    wait_until(lambda: log.exists() and log.read_text().endswith("\n"))
    return int(log.read_text())


def test_what_was_started_ends_with_its_children(tmp_path: Path) -> None:
    with Processes(tmp_path, os.environ) as processes:
        processes.start("family", sys.executable, "-c", FAMILY)
        child = printed_pid(tmp_path / "family.log")
        assert alive(child)
    assert not alive(child)


def test_what_was_started_ends_when_its_starter_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from fedsim.engines.processes import Processes\n"
        "processes = Processes(Path(sys.argv[1]), os.environ)\n"
        "processes.start('family', sys.executable, '-c', sys.argv[2]); time.sleep(60)"
    )
    starter = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), FAMILY])
    child = printed_pid(tmp_path / "family.log")
    starter.kill()
    starter.wait()
    wait_until(lambda: not alive(child))


def test_a_program_that_ended_is_an_error_that_names_its_log(tmp_path: Path) -> None:
    with Processes(tmp_path, os.environ) as processes:
        processes.start("short", sys.executable, "-c", "import sys; print('no luck'); sys.exit(3)")
        with pytest.raises(EngineError, match=r"short ended with code 3; see .*short\.log"):
            wait_for_port(free_ports(1)[0], processes, "short", seconds=10)
    assert (tmp_path / "short.log").read_text() == "no luck\n"


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    processes = Processes(tmp_path, os.environ)
    assert processes.call(sys.executable, "-c", "print('hello')") == "hello\n"
    with pytest.raises(EngineError, match="no luck"):
        processes.call(sys.executable, "-c", "import sys; sys.exit('no luck')")


def test_clients_are_dealt_out() -> None:
    assert [list(share) for share in shared(range(5), 2)] == [[0, 2, 4], [1, 3]]
    assert [list(share) for share in shared(range(2), 5)] == [[0], [1]]


def test_progress_is_told_again(tmp_path: Path) -> None:
    told: list[tuple] = []

    class Noting:
        def start(self, total_rounds: int) -> None:
            told.append(("start", total_rounds))

        def round(self, branch: str, round_: int, clients: int) -> None:
            told.append(("round", branch, round_, clients))

        def note(self, text: str) -> None:
            told.append(("note", text))

        def close(self) -> None: ...

    file = tmp_path / "relay.jsonl"
    relay, replay = RelayedProgress(file), Replay(file, Noting())
    replay.catch_up()
    relay.start(3)
    relay.round("keep", 1, 2)
    replay.catch_up()
    assert told == [("start", 3), ("round", "keep", 1, 2)]
    with file.open("a") as handle:
        handle.write('["note", "half a l')
    replay.catch_up()
    with file.open("a") as handle:
        handle.write('ine"]\n')
    replay.catch_up()
    assert told[2:] == [("note", "half a line")]
    assert not replay.done
    relay.finished("out of luck")
    replay.catch_up()
    assert (replay.done, replay.error) == (True, "out of luck")
