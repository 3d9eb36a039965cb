"""Metrics: arrays in, numbers out; one family a file."""
