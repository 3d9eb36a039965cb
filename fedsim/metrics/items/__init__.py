"""Metrics of single records and of a model, one file each; only the registry knows them."""
