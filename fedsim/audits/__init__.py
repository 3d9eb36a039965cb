"""Audits: attacks on a finished life; each owns its generators and its ledger."""
