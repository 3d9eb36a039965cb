"""What users call: the command line, a run from scenario to report."""
