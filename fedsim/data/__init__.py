"""Data sources: each gives a Corpus of records grouped into clients, holdout and public; knows no model."""
