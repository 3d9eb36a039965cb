"""Audits: games that bound epsilon from below, to be compared with what the ledger claims from above."""
