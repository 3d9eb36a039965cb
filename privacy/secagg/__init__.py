"""Secure aggregation: the server adds up vectors of which it can read only the sum (see ``stage``)."""

from privacy.secagg.stage import SecureAggregationConfig, SecureAggregationStage

__all__ = ["SecureAggregationConfig", "SecureAggregationStage"]
