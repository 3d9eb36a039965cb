"""What is scripted to happen: pure functions of events, records and seed; no torch."""
