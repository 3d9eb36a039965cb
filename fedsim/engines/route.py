"""What both sides of an engine call the same."""

ROUTE = "route"
"""Name of the record that says for whom a message is: ``client``, ``variant`` and ``seed``."""
CLIENTS = "clients"
"""Key of a SuperNode's configuration, and of its answer to ``query.whoami``: its clients, as ``0,2,4``."""
