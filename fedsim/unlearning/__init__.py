"""Unlearning methods: resumable iterators of round plans, one file a method."""
