"""All branches through all rounds, with checkpoints; nothing is judged here."""
