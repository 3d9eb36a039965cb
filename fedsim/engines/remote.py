"""The server's side of an engine: a Grid whose clients are reached through a Grid of Flower's own.

Flower's nodes have ids of their own, come and go, and may never answer. A message is sent on with a ``route``
record that names its client and life; its reply comes back as if from our node. Whatever goes wrong on the
way (no node, an error there, silence) is an error reply of that client, so that every message gets one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedsim.engines.errors import EngineError, EngineStoppedError
from fedsim.engines.route import ROUTE
from fedsim.federation.grid import RosterGrid, client_of, refusal


@dataclass(frozen=True, kw_only=True)
class Link:
    """How one of Flower's Grids is used.

    ``timeout`` is the silence, in seconds, after which answers still missing are given up; ``poll`` the
    pause, in seconds, between two looks for answers. ``stopping`` ends every wait. ``fatal_codes`` are those
    of errors that are the engine's and no client's.
    """

    flower: Grid
    timeout: float
    poll: float
    stopping: threading.Event = field(default_factory=threading.Event)
    fatal_codes: frozenset[int] = frozenset()

    def exchange(self, messages: Sequence[Message]) -> list[Message | None]:
        """Send Flower's messages and wait for their replies; None where there is none."""
        keys = [next(iter(self.flower.push_messages([message])), None) or None for message in messages]
        replies: dict[str, Message] = {}
        waiting = {key for key in keys if key is not None}
        heard = time.monotonic()
        while waiting and time.monotonic() < heard + self.timeout:
            found = {
                reply.metadata.reply_to_message_id: reply for reply in self.flower.pull_messages(waiting)
            }
            if self.stopping.is_set():
                raise EngineStoppedError("the engine was stopped")
            if found:
                replies |= found
                waiting -= found.keys()
                heard = time.monotonic()
            elif waiting:
                self.stopping.wait(self.poll)
        return [None if key is None else replies.get(key) for key in keys]


Whereabouts = Callable[[Sequence[int]], Mapping[int, int]]
"""The Flower nodes through which clients can be reached now; a client that cannot be reached is left out."""


def any_node(link: Link) -> Whereabouts:
    """In a simulation every node can speak for every client: clients are dealt out among the nodes."""

    def where(clients: Sequence[int]) -> dict[int, int]:
        nodes = sorted(link.flower.get_node_ids())
        return {client: nodes[index % len(nodes)] for index, client in enumerate(clients) if nodes}

    return where


class OwnNodes:
    """Each client is reached through the node that was registered for it, as long as that one is connected.

    ``nodes`` maps the ids that the SuperLink gave to the nodes' keys to their clients. What a node says of
    itself counts for nothing, and a node that comes later is left alone.
    """

    def __init__(self, link: Link, nodes: Mapping[int, Sequence[int]]) -> None:
        self.link = link
        self._node_of = {client: node for node, clients in nodes.items() for client in clients}

    def __call__(self, clients: Sequence[int]) -> dict[int, int]:
        connected = set(self.link.flower.get_node_ids())
        return {client: node for client in clients if (node := self._node_of.get(client)) in connected}


def wait_for(where: Whereabouts, clients: Sequence[int], *, link: Link, seconds: float) -> None:
    """Wait until all ``clients`` can be reached; TimeoutError names those that cannot after ``seconds``."""
    deadline = time.monotonic() + seconds
    while missing := sorted(set(clients) - where(clients).keys()):
        if time.monotonic() >= deadline:
            shown = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
            raise TimeoutError(f"no node for clients {shown} after {seconds:g} seconds")
        if link.stopping.wait(link.poll):
            raise EngineStoppedError("the engine was stopped")


class RemoteGrid(RosterGrid):
    """A Grid for the clients of one life (variant and seed), over one of Flower's Grids."""

    def __init__(self, link: Link, where: Whereabouts, *, variant: str, seed: int) -> None:
        super().__init__()
        self.link, self.where = link, where
        self.variant, self.seed = variant, seed

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Deliver messages and give one reply for each, in order of node id; ``timeout`` is the link's."""
        ordered = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        nodes = self.where([client_of(message.metadata.dst_node_id) for message in ordered])
        sent = {
            index: self._routed(message, nodes[client])
            for index, message in enumerate(ordered)
            if (client := client_of(message.metadata.dst_node_id)) in nodes
        }
        answers = dict(zip(sent, self.link.exchange(list(sent.values())), strict=True))
        return [
            self._reply(message, answers.get(index))
            if index in sent
            else refusal(message, "no node of this client is connected")
            for index, message in enumerate(ordered)
        ]

    def _routed(self, message: Message, node: int) -> Message:
        """A message of our own as one of Flower's, to ``node``."""
        client = client_of(message.metadata.dst_node_id)
        route = ConfigRecord({"client": client, "variant": self.variant, "seed": self.seed})
        content = RecordDict({**message.content, ROUTE: route})
        return Message(
            content, node, message.metadata.message_type, group_id=message.metadata.group_id or None
        )

    def _reply(self, message: Message, answer: Message | None) -> Message:
        """A node's answer as the reply to our message."""
        if answer is None:
            return refusal(message, f"no answer after {self.link.timeout:g} seconds without any")
        if answer.has_error():
            if answer.error.code in self.link.fatal_codes:
                raise EngineError(f"a worker died: {str(answer.error.reason).splitlines()[0]}")
            return refusal(message, str(answer.error.reason))
        return Message(answer.content, reply_to=message)
