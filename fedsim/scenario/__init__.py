"""Composes the rooms' configurations; the only reader of YAML."""
