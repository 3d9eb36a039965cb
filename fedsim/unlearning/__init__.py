"""Unlearning methods: each says what happens in its rounds, and does nothing itself; one file a method."""
