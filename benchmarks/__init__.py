"""Measurements of speed and memory: how long a round takes, next to Flower's own runtime and to peers."""
