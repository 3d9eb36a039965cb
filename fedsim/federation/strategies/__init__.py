"""Federated algorithms: how clients' updates are combined; a file a family, known by name to the registry."""
