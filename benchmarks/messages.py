"""What a message costs when its client does nothing: 280 kB there and back.

In process, a message is handed over and its arrays are shared. Serialised ones go through their protobuf
bytes both ways, as they would on a network; runs do so only where a test asks for it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

from flwr.app import Message, RecordDict

from benchmarks.harness import Options, Report, Variant, interleave, ratio, seconds
from benchmarks.ray_runtime import check_echo, echo_app, measure_messages, payload
from fedsim.federation.grid import InProcessGrid, node_of
from fedsim.training.tuning import cores

GOAL = 50.0


def run(options: Options) -> Report:
    sizes = (10, 20) if options.small else (200, 1000)
    rounds = options.size(3, 1)
    startups: dict[str, list[float]] = {}
    variants = []
    for clients in sizes:
        startups[f"ray, {clients} clients"] = []
        measures = {
            "fedsim": _ours(clients, rounds=options.size(20, 3)),
            "fedsim serialised": _ours(clients, rounds=options.size(3, 1), serialise=True),
            "ray": _rays(clients, rounds, startups[f"ray, {clients} clients"]),
        }
        variants += [
            Variant(name=f"{kind}, {clients} clients", measure=measure, warms_itself=kind == "ray")
            for kind, measure in measures.items()
        ]
    samples = interleave(variants, options.repeat)
    return Report(
        name="messages",
        title="Messages to clients that do nothing",
        unit="ms per message",
        settings={"payload_kB": 280, "rounds": rounds, "ray_actors": cores()},
        samples=samples,
        ratios=[
            ratio(
                f"ray over {kind}, {clients} clients",
                samples[f"ray, {clients} clients"],
                samples[f"{kind}, {clients} clients"],
                at_least=goal,
            )
            for clients in sizes
            for kind, goal in (("fedsim", GOAL), ("fedsim serialised", None))
        ],
        facts={f"startup of {name}, s": statistics.median(found) for name, found in startups.items()},
    )


def _ours(clients: int, *, rounds: int, serialise: bool = False) -> Callable[[], float]:
    grid = InProcessGrid(echo_app(), serialise=serialise)

    def measure() -> float:
        taken = []
        for round_ in range(rounds):
            replies: list[Message] = []
            content = payload(round_)
            taken.append(seconds(partial(_send, grid, content, clients, replies)))
            check_echo(replies, content, clients)
        return 1000 * statistics.median(taken) / clients

    return measure


def _send(grid: InProcessGrid, content: RecordDict, clients: int, replies: list[Message]) -> None:
    messages = [grid.create_message(content, "train", node_of(client), "0") for client in range(clients)]
    replies.extend(grid.send_and_receive(messages))


def _rays(clients: int, rounds: int, startups: list[float]) -> Callable[[], float]:
    def measure() -> float:
        found = measure_messages(clients=clients, rounds=rounds)
        startups.append(found["startup"])
        return 1000 * float(statistics.median(found["rounds"])) / clients

    return measure
