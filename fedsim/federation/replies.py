"""Clients' replies, read with distrust.

A reader gives what was asked for or raises `ReplyError`, whatever the reply holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from fedsim.federation.beside import taken
from fedsim.federation.client import CODES, PAYLOAD, UPDATE
from fedsim.federation.grid import CLIENT_STATE, OWN
from fedsim.federation.orders import WorkOrder
from fedsim.federation.runtime import ClientRuntime
from fedsim.federation.strategies.protocol import Vectors
from fedsim.training.spsa import Address, replay
from privacy import ClientContext, Ledger, LedgerError, Payload, check_charges


class ReplyError(ValueError):
    """A client failed, or its reply cannot be used; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a client sent after training: its payload and the releases it made.

    ``memory`` and ``own`` are what is to be carried to a simulated client.
    """

    payload: Payload
    made: Ledger
    memory: bytes
    own: Vectors


def read_answer(reply: Message) -> tuple[bytes, bytes]:
    """A client's message of an interactive stage, and what is to be carried to it."""
    with _distrusted(reply):
        records = reply.content.config_records
        message, memory = records["setup"]["message"], records[CLIENT_STATE]["memory"]
        return _bytes(message, "message"), _bytes(memory, "memory")


def read_count(reply: Message) -> int:
    """How many of the named records a client holds."""
    with _distrusted(reply):
        return int(cast(int, reply.content.metric_records["metrics"]["records"]))


def read_update(
    reply: Message, client: int, order: WorkOrder, runtime: ClientRuntime, *, version: int, dimension: int
) -> Trained:
    """A client's update of the adapter of ``version`` and ``dimension``.

    With it come the releases that its stages make, and no others.
    """
    with _distrusted(reply):
        records = reply.content.config_records
        started_from = records["config"]["version"]
        if started_from != version:
            raise ReplyError(f"trained on version {started_from!r}, the server is at {version}")
        sent = reply.content.array_records[UPDATE]
        if reply.content.array_records.keys() - {UPDATE, OWN} or set(sent) not in ({PAYLOAD}, {CODES}):
            names = [*reply.content.array_records, *sent]
            raise ReplyError(f"the reply holds arrays that nobody asked for: {', '.join(map(repr, names))}")
        (array,) = (one.numpy() for one in sent.values())
        if not isinstance(array, np.ndarray) or array.ndim != 1:
            what = f"of {array.ndim} dimensions" if isinstance(array, np.ndarray) else type(array).__name__
            raise ReplyError(f"the reply's update is an array {what}, not a vector")
        if CODES in sent:
            array = _replayed(array, client, order, runtime, dimension)
        fields = cast(dict[str, int | float | str], dict(records["fields"]))
        state = records[CLIENT_STATE]
        made = Ledger.from_json(str(state["ledger"]))
        _check_made(made, client, order, runtime)
        return Trained(
            payload=Payload(array=array, fields=fields),
            made=made,
            memory=_bytes(state["memory"], "memory"),
            own=taken(reply.content, OWN, runtime.algorithm.sends, dimension),
        )


@contextmanager
def _distrusted(reply: Message) -> Iterator[None]:
    """Whatever goes wrong with a reply is its sender's fault."""
    if reply.has_error():
        raise ReplyError(str(reply.error.reason))
    try:
        yield
    except ReplyError:
        raise
    except KeyError as error:
        raise ReplyError(f"the reply lacks {error}") from error
    except Exception as error:
        raise ReplyError(f"the reply cannot be read: {type(error).__name__}: {error}") from error


def _bytes(value: object, what: str) -> bytes:
    if not isinstance(value, bytes):
        raise ReplyError(f"the reply's {what} is no bytes")
    return value


def _replayed(
    codes: NDArray[np.uint8], client: int, order: WorkOrder, runtime: ClientRuntime, dimension: int
) -> NDArray[np.float32]:
    """The update that a client's bytes make, one a step that it was asked for."""
    steps = order.local.planned_steps(len(runtime.select(client, order)))
    if order.local.optimizer != "spsa" or codes.dtype != np.uint8 or codes.shape != (steps,):
        raise ReplyError(f"sent {codes.dtype}{codes.shape} for steps that it was not asked for")
    address = Address(seed=order.seed, round=order.round, client=client)
    return replay(codes.tobytes(), address, dimension=dimension, lr=order.local.lr)


def _check_made(made: Ledger, client: int, order: WorkOrder, runtime: ClientRuntime) -> None:
    here = ClientContext(client=str(client), round_id=order.round, branch=order.branch, attempt=order.attempt)
    try:
        check_charges(runtime.pipeline.stages, made, here, runtime.task(client, order))
    except LedgerError as error:
        raise ReplyError(str(error)) from error
