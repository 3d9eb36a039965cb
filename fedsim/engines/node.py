"""The ClientApp behind a SuperNode: a messenger between the SuperNode and its worker.

A SuperNode starts a process for every message. This one loads nothing: it hands the message to the worker
that listens beside the SuperNode (``fedsim.engines.worker``), which keeps the base in memory, and takes its
reply. The node's configuration names ``clients`` and ``worker``, the worker's socket; a message for anybody
else's client is refused.
"""

from __future__ import annotations

import time
from multiprocessing.connection import Client, Connection

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedsim.engines.route import CLIENTS, ROUTE
from fedsim.federation.grid import QUERIES, from_bytes, to_bytes

app = ClientApp()
PATIENCE_SECONDS = 60.0
"""How long a worker that was just started may take to have an address."""
REFUSED_SECONDS = 1.0
"""How long one that has an address may take to listen there."""


def forward(message: Message, context: Context) -> Message:
    """The worker's reply to a message for one of this node's clients."""
    client = str(message.content.config_records[ROUTE]["client"])
    if client not in str(context.node_config[CLIENTS]).split(","):
        raise ValueError(f"client {client} is not at this node")
    with _connect(str(context.node_config["worker"])) as worker:
        worker.send_bytes(to_bytes(message))
        return from_bytes(worker.recv_bytes())


for query in QUERIES:
    app.query(query)(forward)
app.train()(forward)


def _connect(address: str) -> Connection:
    """A connection to the worker, as soon as it listens."""
    started = time.monotonic()
    while True:
        try:
            return Client(address, family="AF_UNIX")
        except (FileNotFoundError, ConnectionRefusedError) as error:
            patience = REFUSED_SECONDS if isinstance(error, ConnectionRefusedError) else PATIENCE_SECONDS
            if time.monotonic() >= started + patience:
                raise
            time.sleep(0.1)
