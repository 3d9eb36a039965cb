"""One round of one branch; knows no probe, and no file but its state's own."""
