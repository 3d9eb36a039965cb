"""Programs that run beside this one, each with a log; they end with this process at the latest."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from fedsim.engines.errors import EngineError

GRACE_SECONDS = 10.0


class Processes:
    """Programs by name; leaving the ``with`` block ends them all, with whatever they started."""

    def __init__(self, logs: Path, environment: Mapping[str, str]) -> None:
        self.logs, self.environment = logs, dict(environment)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Processes:
        self.logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str, *command: str | Path) -> None:
        """Start a program in the background; what it prints goes to ``NAME.log``."""
        guard = [sys.executable, "-m", "fedsim.engines.guard"]
        with (self.logs / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [*guard, *map(str, command)],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def call(self, *command: str | Path) -> str:
        """Run a command to its end and give what it printed; EngineError with its last words if it fails."""
        done = subprocess.run(
            list(map(str, command)),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip()[-500:]
            raise EngineError(f"{Path(command[0]).name} {command[1]} failed: {said}")
        return done.stdout

    def check(self, name: str) -> None:
        """EngineError when a program has ended."""
        code = self._running[name].poll()
        if code is not None:
            raise EngineError(f"{name} ended with code {code}; see {self.logs / name}.log")

    def stop(self) -> None:
        """End every program and its children: asked first, killed after a while."""
        for process in self._running.values():
            _signal_group(process, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while any(_group_lives(process) for process in self._running.values()):
            if time.monotonic() >= deadline:
                break
            time.sleep(0.1)
        for process in self._running.values():
            _signal_group(process, signal.SIGKILL)
            process.wait()
        self._running.clear()


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _group_lives(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process or anything in its group still runs."""
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


Handler = Callable[[int, FrameType | None], None]


@contextmanager
def signals(handler: Handler) -> Iterator[None]:
    """Ctrl-C and SIGTERM go to ``handler``; in a thread other than the main one they are left alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def end(number: int, frame: FrameType | None) -> NoReturn:
    """A handler that ends what runs by an exception, so that all it started is ended too."""
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody uses now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def wait_for_port(port: int, processes: Processes, name: str, *, seconds: float) -> None:
    """Wait until the named program listens on a loopback port; EngineError if it does not."""
    deadline = time.monotonic() + seconds
    while True:
        processes.check(name)
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if time.monotonic() >= deadline:
            raise EngineError(f"{name} does not listen on port {port} after {seconds:g} seconds")
        time.sleep(0.2)


def shared(items: Sequence[int], parts: int) -> list[Sequence[int]]:
    """Items dealt out in turn, at most ``parts`` shares and none of them empty."""
    return [items[first::parts] for first in range(min(parts, len(items)))]
