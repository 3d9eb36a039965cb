"""Audits: attacks that are run against a model or an update, to see what it gives away."""
