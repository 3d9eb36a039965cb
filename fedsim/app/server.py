"""The ServerApp of a deployment: a whole run, whose run directory the app's configuration names.

It goes on from whatever the directory holds, like any resumed run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsim.app import runs
from fedsim.engines.relay import RelayedProgress
from fedsim.engines.remote import Link, OwnNodes, RemoteGrid, wait_for
from fedsim.engines.route import read_nodes
from fedsim.federation.runtime import ClientRuntime
from fedsim.scenario.file import load_scenario
from fedsim.storage.directory import RunDirectory

CONNECT_SECONDS = 120.0
"""How long a run waits for the SuperNodes of all its clients before it begins."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run to the end; whoever started the deployment reads the relay file."""
    relay = RelayedProgress(Path(str(context.run_config["relay"])))
    try:
        nodes = read_nodes(str(context.run_config["nodes"]))
        _run(grid, RunDirectory(Path(str(context.run_config["run"]))), nodes, relay)
    except Exception as error:
        relay.finished(f"{type(error).__name__}: {error}")
        raise
    relay.finished(None)


def _run(
    grid: Grid, directory: RunDirectory, nodes: Mapping[int, Sequence[int]], relay: RelayedProgress
) -> None:
    execution = load_scenario(directory.file("scenario.yaml")).scenario.execution
    link = Link(flower=grid, timeout=execution.client_timeout, poll=0.2)
    where = OwnNodes(link, nodes)
    clients: set[int] = set()

    def connect(runtime: ClientRuntime, variant: str, seed: int) -> RemoteGrid:
        clients.update(runtime.records)
        return RemoteGrid(link, where, variant=variant, seed=seed)

    simulation = runs.reopen(directory, connect)
    wait_for(where, sorted(clients), link=link, seconds=CONNECT_SECONDS)
    runs.live(simulation, directory, relay)
