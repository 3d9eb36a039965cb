"""Runs the audits of a scenario on finished lives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedsim.audits.claims import canary_rows
from fedsim.audits.config import AuditConfig, CanaryAudit
from fedsim.audits.inversion import inversion_rows
from fedsim.living.runner import LifeRunner
from fedsim.storage.progress import Progress


def audits_json(
    audits: Sequence[AuditConfig], runners: Sequence[LifeRunner], progress: Progress
) -> dict[str, Any]:
    """What each of the ``audits`` found on every life: games against claims, records read off updates."""
    found: dict[str, list[dict[str, Any]]] = {"canaries": [], "gradient_inversion": []}
    for runner in runners:
        context = runner.context
        for config in audits:
            progress.note(
                f"{context.variant}, seed {context.seed}: audit by {config.audit.replace('_', ' ')}"
            )
            if isinstance(config, CanaryAudit):
                found["canaries"] += canary_rows(context, config, progress)
            else:
                adapter = runner.final_federation("keep").adapter
                found["gradient_inversion"] += inversion_rows(context, config, adapter)
    for row in found["canaries"]:
        if row["broken"]:
            progress.note(
                f"{row['variant']}, seed {row['seed']}: the claim of {row['stage']} is BROKEN: audited "
                f"epsilon {row['audited_epsilon']:.3g} above the claimed {row['claimed_epsilon']:.3g}"
            )
    return found
