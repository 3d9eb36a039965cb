"""What follows from a finished run's tables: the life as data, ledgers, trajectories and the verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fedsim.audits.runner import audits_json
from fedsim.evidence.budgets import exhausted_rows, exhausted_sentences
from fedsim.evidence.differencing import differencing_rows, differencing_sentences
from fedsim.evidence.judgements import divergence_notes, public_notes, summaries, without_empty_utility
from fedsim.evidence.life_data import life_json
from fedsim.evidence.outweighing import outweighing_rows, outweighing_sentences
from fedsim.evidence.promises import forgetting_rows
from fedsim.evidence.reference_ledger import Reference, with_reference_epsilon
from fedsim.evidence.sight import view_rows
from fedsim.evidence.tables import LifeTables, forget_quality_rows, informative_rows, trajectories, trust_rows
from fedsim.evidence.verdict import qualify, verdict_rows
from fedsim.life.script import Life
from fedsim.living.context import LifeContext
from fedsim.living.runner import LifeRunner
from fedsim.measuring.probes import absent_sentences
from fedsim.scenario.scenario import Scenario
from fedsim.scenario.variants import Variant
from fedsim.storage.directory import RunDirectory
from fedsim.storage.progress import Progress
from fedsim.unlearning.protocol import MethodConfig
from privacy import VACUOUS, Ledger

OWN_REFERENCE = (
    "{} trains otherwise than the other branches and is its own reference: its forgetting is exact by "
    "construction and not measured here; its utility, and what others lose, are against the common retrain."
)
NO_UTILITY = "Model utility is 0 in every branch, as one of its parts is: this base does not show it."


def conclude(
    scenario: Scenario,
    variants: Sequence[Variant],
    runners: Sequence[LifeRunner],
    directory: RunDirectory,
    progress: Progress,
) -> None:
    """Write what follows from the tables: life, ledgers, trajectories, and the verdict last."""
    contexts = [runner.context for runner in runners]
    branches = ["keep", "leave", "retrain", *(m.branch for m in scenario.compare)]
    directory.write_json("life", life_json(scenario, variants, contexts[0].life))
    references = [_references(runner) for runner in runners]
    directory.write_json("ledger", _ledger_json(runners, references, branches))
    raw = {name: directory.table(name).to_pylist() for name in ("metrics", "items", "costs")}
    every = [reference for own in references for reference in own.values()]
    raw["metrics"] = with_reference_epsilon(raw["metrics"], every)
    lives = [(LifeTables.of(c.variant, c.seed, raw, c.replay_from, c.ensembles), c.life) for c in contexts]
    derived = [row for tables, life in lives for row in trajectories(tables, life, branches)]
    directory.write_rows("trajectories", derived)
    quality = [row for tables, life in lives for row in forget_quality_rows(tables, life, branches)]
    directory.write_rows(
        "metrics", [*(r for r in raw["metrics"] if r["metric"] != "forget_quality_p"), *quality]
    )
    verdict = _verdict_json(scenario, contexts, lives, branches, directory.json("life")["branches"])
    directory.write_json("privacy", _privacy_json(runners, references, branches, directory))
    if scenario.audits:
        directory.write_json("audits", audits_json(scenario.audits, runners, directory, progress))
    directory.write_json("verdict", verdict)


def _references(runner: LifeRunner) -> dict[str, Reference]:
    """The branches of a life in which requests are answered by replaying: retrain, and every ensemble."""
    return {branch: Reference(runner, branch) for branch in ("retrain", *runner.context.ensembles)}


def _ledger(runner: LifeRunner, references: Mapping[str, Reference], branch: str) -> Ledger:
    """A branch's ledger at the end of its life; with all that is replayed, where requests are answered so."""
    if branch in references:
        return references[branch].ledger(runner.context.life.horizon)
    return runner.final_federation(branch).ledger


def _verdict_json(
    scenario: Scenario,
    contexts: Sequence[LifeContext],
    lives: Sequence[tuple[LifeTables, Life]],
    branches: Sequence[str],
    titled: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
    """What was informative, which metrics are trusted, a row for each branch and request, and the summary."""
    methods: dict[str, MethodConfig] = {method.branch: method for method in scenario.compare}
    config = scenario.probes
    informative = [row for tables, life in lives for row in informative_rows(tables, life, config)]
    trust = trust_rows(lives)
    rows = [
        row
        for tables, life in lives
        for row in verdict_rows(tables, life, config, branches, methods, _untrusted(trust, tables.variant))
    ]
    rows, unmeasured = without_empty_utility(rows)
    titles = {branch["name"]: branch["title"] for branch in titled}
    notes: dict[str, list[str]] = {}
    for context, (tables, life) in zip(contexts, lives, strict=True):
        said = divergence_notes(tables, life)
        said += public_notes(tables, config, life.horizon, context.probes.public)
        said += absent_sentences(context.probes)
        said += [NO_UTILITY] if unmeasured else []
        said += [OWN_REFERENCE.format(titles[branch]) for branch in sorted(tables.ensembles)]
        told = notes.setdefault(tables.variant, [])
        told.extend(one for one in said if one not in told)
    return {
        "informative": informative,
        "trust": trust,
        "rows": qualify(rows, informative),
        "summary": summaries(rows, informative, titles, notes),
    }


def _untrusted(trust: Sequence[dict[str, Any]], variant: str) -> frozenset[str]:
    """Metrics that cannot tell keep from retrain in a variant."""
    return frozenset(row["metric"] for row in trust if row["variant"] == variant and not row["trusted"])


def _ledger_json(
    runners: Sequence[LifeRunner], references: Sequence[Mapping[str, Reference]], branches: Sequence[str]
) -> dict[str, Any]:
    """Every branch's ledger at the end of its life; the reference's with all that retraining replays."""
    entries = []
    for runner, own in zip(runners, references, strict=True):
        context = runner.context
        for branch in branches:
            if branch == "retrain" and not context.life.requests:
                continue
            ledger = json.loads(_ledger(runner, own, branch).to_json())
            entries.append(
                {
                    "variant": context.variant,
                    "seed": context.seed,
                    "branch": branch,
                    "releases": ledger["releases"],
                }
            )
    return {"entries": entries}


def _privacy_json(
    runners: Sequence[LifeRunner],
    references: Sequence[Mapping[str, Reference]],
    branches: Sequence[str],
    directory: RunDirectory,
) -> dict[str, Any]:
    """Sight, promises, differencing and budgets of a run.

    Who sees what in each variant, what DP alone promises each request, which sums tell too much, whose budget
    was spent when.
    """
    of_variant: dict[str, LifeContext] = {}
    for runner in runners:
        of_variant.setdefault(runner.context.variant, runner.context)
    events = directory.events()
    exhausted, outweighing = exhausted_rows(events), outweighing_rows(events)
    differing = [row for r in runners for row in differencing_rows(r.context)]
    return {
        "meaningless_above": VACUOUS,
        "views": [row for context in of_variant.values() for row in view_rows(context)],
        "forgetting": [
            row
            for runner, own in zip(runners, references, strict=True)
            for branch in branches
            if branch != "retrain"
            for row in forgetting_rows(runner.context, branch, _ledger(runner, own, branch))
        ],
        "differencing": differing,
        "exhausted": exhausted,
        "outweighing": outweighing,
        "sentences": [
            *differencing_sentences(differing),
            *exhausted_sentences(exhausted),
            *outweighing_sentences(outweighing),
        ],
    }
