"""Runs the audits of a scenario on finished lives; what one has found is kept: a killed run goes on."""

from __future__ import annotations

from collections.abc import Sequence

from fedsim.audits.protocol import AuditConfig, FinishedLife, Row
from fedsim.audits.registry import AUDITS
from fedsim.living.runner import LifeRunner
from fedsim.storage.directory import RunDirectory
from fedsim.storage.progress import Progress

FOUND = "audits.jsonl"
"""What each audit found on each life, a line each, in the order in which they ended."""


def audits_json(
    audits: Sequence[AuditConfig],
    runners: Sequence[LifeRunner],
    directory: RunDirectory,
    progress: Progress,
) -> dict[str, list[Row]]:
    """What each of the ``audits`` found on every life, by the audit's name."""
    before = {
        (line["variant"], line["seed"], line["place"], line["part"]): line["rows"]
        for line in directory.lines(FOUND)
    }
    found: dict[str, list[Row]] = {name: [] for name in AUDITS}
    for runner in runners:
        context = runner.context
        where = f"{context.variant}, seed {context.seed}"
        life = FinishedLife(context=context, federation=runner.final_federation, note=progress.note)
        for place, audit in enumerate(audits):
            for part in audit.parts(life):
                key = (context.variant, context.seed, place, part)
                if key not in before:
                    progress.note(f"{where}: audit by {audit.audit.replace('_', ' ')}")
                    rows = list(audit.rows(life, part))
                    directory.append(FOUND, life.row(place=place, audit=audit.audit, part=part, rows=rows))
                    before[key] = rows
                found[audit.audit] += before[key]
                for warning in filter(None, map(audit.warning, before[key])):
                    progress.note(f"{where}: {warning}")
    return found
