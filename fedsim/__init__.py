"""fedsim: a simulation-first federated testbed for unlearning, with a pluggable privacy layer."""
