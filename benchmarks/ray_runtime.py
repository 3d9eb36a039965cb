"""Flower's simulation runtime on Ray, as its users get it: one node per client, one actor per core.

Runs in a process of its own, which measures either messages that are echoed or whole LoRA rounds. In a round
the server's side is ours on both runtimes, and so is the ClientApp; only what lies between them differs.
Startup is what passes until the first round has ended.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from benchmarks.children import function, read_settings, run_child, write_result
from benchmarks.world import Rounds, Work, make_runtime, sequential
from fedsim.engines.route import ROUTE
from fedsim.federation.client import make_client_app
from fedsim.federation.grid import InProcessGrid, client_of, context_of
from fedsim.training.tuning import cores

PAYLOAD_FLOATS = 70_000
"""A message of 280 kB, about the adapter of a small base."""


def measure_rounds(work: Work, *, rounds: int) -> dict[str, Any]:
    """LoRA rounds on Ray: seconds of each after the first, startup, and the adapter after the first."""
    settings = {"work": work.as_settings(), "rounds": rounds}
    return run_child(function("benchmarks.ray_runtime:lora_rounds"), settings)


def measure_messages(*, clients: int, rounds: int) -> dict[str, Any]:
    """Messages echoed on Ray: seconds of each round after the first, and startup."""
    settings = {"clients": clients, "rounds": rounds}
    return run_child(function("benchmarks.ray_runtime:echoes"), settings)


# ------------------------------------------------------------------------------- clients


def echo_app() -> ClientApp:
    """Gives back what it was sent."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(message.content, reply_to=message)

    return app


@lru_cache(maxsize=1)
def _trained_here(work: Work) -> ClientApp:
    """The ClientApp of ordinary runs, built once in each actor, training one client at a time."""
    torch.set_num_threads(1)
    model = work.model()
    return make_client_app(make_runtime(work, model, sequential(model)))


def training_app(work: Work) -> ClientApp:
    """A ClientApp small enough to be sent with every message; it finds the real one in its actor."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(str(message.content.config_records[ROUTE]["client"]))
        own = context_of(client, run_id=context.run_id, node_id=context.node_id)
        return _trained_here(work)(message, own)

    return app


# -------------------------------------------------------------------------------- server


class RelayGrid(InProcessGrid):
    """A grid whose messages go through one of Flower's; the n-th client has the n-th node."""

    def __init__(self) -> None:
        super().__init__(ClientApp())
        self.flower: Grid | None = None

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send all at once and wait for all, as Flower's strategies do."""
        assert self.flower is not None
        nodes = sorted(self.flower.get_node_ids())
        ours = {client_of(message.metadata.dst_node_id): message for message in messages}
        sent = [
            Message(
                RecordDict({**message.content, ROUTE: ConfigRecord({"client": client})}),
                nodes[client],
                message.metadata.message_type,
                group_id=message.metadata.group_id,
            )
            for client, message in ours.items()
        ]
        client_at = {node: client for client, node in enumerate(nodes)}
        replies = []
        for reply in self.flower.send_and_receive(sent, timeout=timeout):
            asked = ours[client_at[reply.metadata.src_node_id]]
            if reply.has_error():
                raise RuntimeError(reply.error.reason)
            replies.append(Message(reply.content, reply_to=asked))
        return replies


def _simulate(server: ServerApp, app: ClientApp, *, clients: int) -> None:
    from flwr.simulation import run_simulation

    run_simulation(
        server_app=server,
        client_app=app,
        num_supernodes=clients,
        backend_config={
            "init_args": {"num_cpus": cores(), "logging_level": "ERROR", "log_to_driver": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )


def _wait_for_nodes(grid: Grid, clients: int) -> list[int]:
    while len(nodes := sorted(grid.get_node_ids())) < clients:
        time.sleep(0.05)
    return nodes


def lora_rounds(folder: Path) -> None:
    """The child process behind ``measure_rounds``."""
    settings = read_settings(folder)
    work = Work(**settings["work"])
    torch.set_num_threads(1)
    relay = RelayGrid()
    federation = Rounds.of(work, work.model(), sequential, connect=lambda _: relay)
    server = ServerApp()
    started = time.perf_counter()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        _wait_for_nodes(grid, work.clients)
        relay.flower = grid
        federation.next()
        startup, first = time.perf_counter() - started, federation.vector()
        for _ in range(settings["rounds"]):
            federation.next()
        write_result(folder, {"startup": startup, "rounds": federation.seconds[1:]}, adapter=first)

    _simulate(server, training_app(work), clients=work.clients)


def echoes(folder: Path) -> None:
    """The child process behind ``measure_messages``."""
    settings = read_settings(folder)
    clients, taken = settings["clients"], []
    server = ServerApp()
    started = time.perf_counter()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        nodes = _wait_for_nodes(grid, clients)
        for round_ in range(settings["rounds"] + 1):
            before = time.perf_counter()
            content = payload(round_)
            replies = list(
                grid.send_and_receive(
                    [Message(content, node, "train", group_id=str(round_)) for node in nodes]
                )
            )
            taken.append(time.perf_counter() - before)
            if round_ == 0:
                startup = time.perf_counter() - started
            check_echo(replies, content, clients)
        write_result(folder, {"startup": startup, "rounds": taken[1:]})

    _simulate(server, echo_app(), clients=clients)


def payload(round_: int) -> RecordDict:
    """What every client is sent in a round."""
    array = np.full(PAYLOAD_FLOATS, round_, dtype=np.float32)
    return RecordDict({"arrays": ArrayRecord({"adapter": Array(array)})})


def check_echo(replies: list[Message], content: RecordDict, clients: int) -> None:
    """RuntimeError unless every client gave back what it was sent."""
    sent = content.array_records["arrays"]["adapter"].data
    returned = [
        reply.has_content() and reply.content.array_records["arrays"]["adapter"].data == sent
        for reply in replies
    ]
    if len(returned) != clients or not all(returned):
        raise RuntimeError(f"{sum(returned)} of {clients} clients gave back what they were sent")
