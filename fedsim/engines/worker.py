"""The clients' side of an engine: a process that keeps the base loaded and answers for any client.

Everything is built from the text of the resolved scenario, once per process and life; which client a message
is for, its ``route`` says. Ray's workers run the app of ``make_worker_app``. A SuperNode starts a process for
each message, too short-lived to load a base, so it has a worker beside it that listens on a socket:

    python -m fedsim.engines.worker SCENARIO SOCKET
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from multiprocessing.connection import Listener
from pathlib import Path

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsim.assembly.build import make_runtime
from fedsim.assembly.simulation import CheckedScenario
from fedsim.engines.route import ROUTE
from fedsim.federation.client import make_client_app
from fedsim.federation.grid import QUERIES, context_of, failure, from_bytes, to_bytes
from fedsim.scenario.file import read_scenario
from fedsim.training.devices import resolve_devices


@dataclass(frozen=True, kw_only=True)
class WorkerSource:
    """What a worker builds clients from; small, because Ray sends it along with every message.

    ``scenario`` is the text of the resolved scenario, ``device`` the worker's own (Ray shows each worker its
    GPU as the first), ``threads`` its threads of torch.
    """

    scenario: str
    device: str
    threads: int


@lru_cache(maxsize=1)
def _simulation(source: WorkerSource) -> CheckedScenario:
    """The scenario with its models, loaded once."""
    torch.set_num_threads(source.threads)
    loaded = read_scenario(source.scenario, "scenario.yaml")
    return CheckedScenario(loaded=loaded, devices=resolve_devices(source.device)[:1], threads=source.threads)


@cache
def _app(source: WorkerSource, variant: str, seed: int) -> ClientApp:
    """The ClientApp of one life; kept, since its clients remember what they are in the middle of."""
    simulation = _simulation(source)
    variants = {one.name: one for one in simulation.loaded.variants}
    return make_client_app(make_runtime(simulation, variants[variant], seed))


def answer(source: WorkerSource, message: Message, context: Context) -> Message:
    """The reply of the client that a routed message names."""
    route = message.content.config_records[ROUTE]
    app = _app(source, str(route["variant"]), int(str(route["seed"])))
    return app(message, context_of(int(str(route["client"])), run_id=context.run_id, node_id=context.node_id))


def make_worker_app(source: WorkerSource) -> ClientApp:
    """The ClientApp that Ray's workers run."""
    app = ClientApp()

    def reply(message: Message, context: Context) -> Message:
        return answer(source, message, context)

    for query in QUERIES:
        app.query(query)(reply)
    app.train()(reply)
    return app


def serve(source: WorkerSource, address: str) -> None:
    """Answer messages that come as bytes over a Unix socket, one after another, until the process ends."""
    context = Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config={})
    with Listener(address, family="AF_UNIX") as listener:
        _simulation(source)
        while True:
            with suppress(EOFError, OSError), listener.accept() as connection:  # whoever asked may be gone
                message = from_bytes(connection.recv_bytes())
                try:
                    reply = answer(source, message, context)
                except Exception as error:
                    reply = failure(message, error)
                connection.send_bytes(to_bytes(reply))


def main() -> None:
    """Serve the scenario file and the socket that the command line names."""
    file, address = sys.argv[1:]
    text = Path(file).read_text(encoding="utf-8")
    execution = read_scenario(text, file).scenario.execution
    threads = 1 if execution.threads == "auto" else execution.threads
    serve(WorkerSource(scenario=text, device=execution.device, threads=threads), address)


if __name__ == "__main__":
    main()
