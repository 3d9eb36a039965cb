"""A federation on this machine: a SuperLink and SuperNodes on the loopback interface, for one run.

Keys, certificates and a token are made for the run and kept in a temporary folder until it ends. The
SuperLink takes apps and new nodes from the holder of the token alone, and admits only SuperNodes whose keys
were registered, over TLS. Clients are dealt out among the SuperNodes, each bound to the node that got its
key; a node that comes later speaks for nobody. Beside each SuperNode stands a worker that keeps the base
loaded. Everything ends with this process; its logs stay in the run's ``logs`` folder. ``flower-superlink
--help`` and ``flower-supernode --help`` say what the options mean.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from fedsim.assembly.build import make_runtime
from fedsim.assembly.engine_check import programs
from fedsim.assembly.simulation import CheckedScenario
from fedsim.engines.control import Control
from fedsim.engines.credentials import write_node_key, write_secret, write_tls, write_token
from fedsim.engines.errors import EngineError
from fedsim.engines.processes import (
    Processes,
    end,
    free_ports,
    shared,
    signals,
    wait_for_port,
)
from fedsim.engines.relay import Replay
from fedsim.engines.route import CLIENTS, write_nodes
from fedsim.storage.directory import RunDirectory
from fedsim.storage.progress import Progress

HOST = "127.0.0.1"
START_SECONDS = 60.0
STATUS_EVERY_SECONDS = 20.0
APP = """\
[project]
name = "federation"
version = "1.0.0"
description = "A fedsim run"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "fedsim"

[tool.flwr.app.components]
serverapp = "federation.server:app"
clientapp = "federation.client:app"

[tool.flwr.app.config]
run = ""
relay = ""
nodes = ""
"""
"""The Flower app that is installed everywhere; its two modules only name the apps of this package."""


def run_deployed(simulation: CheckedScenario, directory: RunDirectory, progress: Progress) -> None:
    """Start a federation, run in it, end it.

    Raises:
        EngineError: a part of it could not be started or ended early, or the ServerApp failed.
    """
    with signals(end), tempfile.TemporaryDirectory(prefix="fedsim-") as name:
        folder = Path(name)
        with Processes(directory.path / "logs", _environment(folder)) as processes:
            clients = _clients(simulation)
            nodes = shared(clients, simulation.loaded.scenario.execution.deployment.nodes)
            port, *node_ports = free_ports(1 + len(nodes))
            link = f"{HOST}:{port}"
            progress.note(f"starting a SuperLink and {len(nodes)} SuperNodes for {len(clients)} clients")
            token = _start_superlink(processes, folder, port)
            with closing(Control(link, root=folder / "ca.pem", token=token)) as control:
                own: dict[int, Sequence[int]] = {}
                for number, (part, node_port) in enumerate(zip(nodes, node_ports, strict=True)):
                    place = folder / f"node-{number}"
                    own[_register(control, place)] = part
                    _start_node(processes, place, directory, part, link, node_port)
                _run_app(processes, control, folder, own, directory, progress)


def _clients(simulation: CheckedScenario) -> list[int]:
    """Everybody with data; the same in all variants and seeds."""
    variant = simulation.loaded.variants[0]
    return sorted(make_runtime(simulation, variant, variant.scenario.seeds[0]).records)


def _environment(folder: Path) -> dict[str, str]:
    """For every program: this Python's commands first, Flower's state in ``folder``, nothing sent home."""
    return os.environ | {
        "PATH": f"{programs()}{os.pathsep}{os.environ.get('PATH', '')}",
        "FLWR_HOME": str(folder / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    }


def _start_superlink(processes: Processes, folder: Path, port: int) -> str:
    """Start the SuperLink with TLS, node authentication and a token for its Control API, which is given back.

    What starts the ServerApp is a program of its own: the SuperLink's would outlive the SuperLink.
    """
    write_tls(folder)
    secret = folder / "superexec.secret"
    write_secret(secret)
    token = folder / "control.token"
    write_token(token)
    (folder / "flower").mkdir()
    processes.start(
        "superlink",
        *(sys.executable, "-m", "fedsim.engines.superlink", token),
        *("--ssl-ca-certfile", folder / "ca.pem"),
        *("--ssl-certfile", folder / "server.pem"),
        *("--ssl-keyfile", folder / "server.key"),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        *("--isolation", "process", "--superexec-auth-secret-file", secret),
        *("--host", HOST, "--port", str(port)),
    )
    wait_for_port(port, processes, "superlink", seconds=START_SECONDS)
    processes.start(
        "serverapp",
        programs() / "flower-superexec",
        *("--runtime-api-address", f"{HOST}:{port}"),
        *("--root-certificates", folder / "ca.pem"),
        *("--superexec-auth-secret-file", secret),
    )
    return token.read_text(encoding="ascii")


def _register(control: Control, folder: Path) -> int:
    """Make a SuperNode's key and have the SuperLink admit it; the node's id."""
    folder.mkdir()
    write_node_key(folder)
    return control.register(folder / "key.pub")


def _start_node(
    processes: Processes, folder: Path, directory: RunDirectory, clients: Sequence[int], link: str, port: int
) -> None:
    """Start a SuperNode that was registered, with its worker."""
    socket = folder / "worker"
    scenario = directory.file("scenario.yaml").absolute()
    processes.start(f"{folder.name}-worker", sys.executable, "-m", "fedsim.engines.worker", scenario, socket)
    processes.start(
        folder.name,
        programs() / "flower-supernode",
        *("--superlink", link),
        *("--root-certificates", folder.parent / "ca.pem"),
        *("--auth-supernode-private-key", folder / "key"),
        *("--node-config", f'{CLIENTS}="{",".join(map(str, clients))}" worker="{socket}"'),
        *("--host", HOST, "--port", str(port)),
    )


def _run_app(
    processes: Processes,
    control: Control,
    folder: Path,
    nodes: Mapping[int, Sequence[int]],
    directory: RunDirectory,
    progress: Progress,
) -> None:
    """Send the app to the SuperLink, with each node's own clients, and wait until its ServerApp is done."""
    package, relay = folder / "app" / "federation", folder / "relay.jsonl"
    package.mkdir(parents=True)
    (folder / "app" / "pyproject.toml").write_text(APP, encoding="utf-8")
    (package / "__init__.py").touch()
    for module, source in (("server", "app.server"), ("client", "engines.node")):
        text = f'from fedsim.{source} import app\n\n__all__ = ["app"]\n'
        (package / f"{module}.py").write_text(text, encoding="utf-8")
    config = {"run": str(directory.path.absolute()), "relay": str(relay), "nodes": write_nodes(nodes)}
    run = control.start(folder / "app", config)
    replay = Replay(relay, progress)
    looked = time.monotonic()
    while not replay.done:
        time.sleep(0.2)
        processes.check("superlink")
        replay.catch_up()
        if time.monotonic() - looked >= STATUS_EVERY_SECONDS and not replay.done:
            looked = time.monotonic()
            _check_run(processes, control, run, replay)
    if replay.error is not None:
        raise EngineError(f"the ServerApp failed: {replay.error}; see {processes.logs}")


def _check_run(processes: Processes, control: Control, run: int, replay: Replay) -> None:
    """EngineError when the ServerApp ended without a word, killed for example, or the SuperLink did."""
    try:
        ended = control.finished(run)
    except EngineError:
        processes.check("superlink")
        raise
    replay.catch_up()
    if ended is not None and not replay.done:
        raise EngineError(f"the ServerApp ended early ({ended}); see {processes.logs}")
