"""Audits: games that bound epsilon from below, to be compared with what the ledger claims from above."""

from privacy.audit.canaries import example_game
from privacy.audit.clients import client_game
from privacy.audit.losses import LossGame
from privacy.audit.result import AuditResult

__all__ = ["AuditResult", "LossGame", "client_game", "example_game"]
