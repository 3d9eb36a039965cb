"""Rows in; rows, verdicts and sentences out."""
