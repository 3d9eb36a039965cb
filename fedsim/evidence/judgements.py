"""Judgements of a run: each branch against the retrained model, and what may be said of the run as a whole.

Everything a user reads (title, table, terminal, figures) comes from what is worked out here once, when the
run ends; see ``fedsim.metrics.judgement`` for the statistics.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fedsim.data.names import ClientNames
from fedsim.evidence.tables import LifeTables, number
from fedsim.life.script import Life
from fedsim.measuring.config import ProbesConfig
from fedsim.metrics.judgement import (
    FEW,
    MEMBERSHIP_MARGIN,
    NLL_MARGIN,
    Kind,
    judge,
    membership,
    paired,
    smallest_visible_distance,
    together,
)
from fedsim.unlearning.request import Request

LEVEL = 0.05
"""Level of the Kolmogorov-Smirnov test."""
NAMES = {"membership_auc": "membership AUC", "nll": "NLL"}


SAID = (
    (
        "below",
        "{} over-forgets: it knows less than the retrained model",
        "{} over-forget: they know less than the retrained model",
    ),
    ("above", "{} still knows more than the retrained model", "{} still know more than the retrained model"),
    (
        "mixed",
        "{} differs from the retrained model both ways",
        "{} differ from the retrained model both ways",
    ),
    (
        "same",
        "{} is within the margins of the retrained model",
        "{} are within the margins of the retrained model",
    ),
    (
        "open",
        "no difference from the retrained model is shown for {}, and none excluded",
        "no difference from the retrained model is shown for {}, and none excluded",
    ),
)
"""How one method of a kind, and several, are spoken of in a title."""


def judgement(
    tables: LifeTables,
    config: ProbesConfig,
    branch: str,
    request: Request,
    round_: int,
    untrusted: Collection[str] = (),
) -> dict[str, Any]:
    """What all metrics say of a branch at a round against retrain; ``untrusted`` metrics have no say."""
    subject, against = request.subject, tables.references(branch).retrain

    def items(name: str, metric: str, of: str = subject) -> Any:
        return tables.item_values(name, of, metric, round_)

    found = []
    for metric, margin in ((config.headline, config.tolerance), ("nll", NLL_MARGIN)):
        mine, reference = items(branch, metric), items(against, metric)
        if metric not in untrusted and mine.size and mine.size == reference.size:
            found.append(paired(metric, mine, reference, margin=margin, known_is_lower=metric == "nll"))
    sides = [items(branch, "nll"), items(against, "nll")]
    sides += [items(branch, "nll", "holdout"), items(against, "nll", "holdout")]
    if "nll" not in untrusted and all(side.size for side in sides) and sides[2].size == sides[3].size:
        found.append(membership(*sides, margin=MEMBERSHIP_MARGIN))
    comparisons = [one for one in found if one is not None]
    verdict = judge(comparisons)
    return {
        "kind": verdict.kind,
        "more": [one.metric for one in verdict.more],
        "less": [one.metric for one in verdict.less],
        "comparisons": [
            {**asdict(one), "low": number(one.low), "high": number(one.high), "direction": one.direction}
            for one in comparisons
        ],
        "membership_auc": tables.value(branch, subject, "membership_auc", round_),
        "membership_reference": tables.value(against, subject, "membership_auc", round_),
    }


def finding(row: Mapping[str, Any], config: ProbesConfig, names: ClientNames) -> str:
    """A verdict row in a sentence: what was shown, what was not, and with how many records."""
    name, round_ = config.headline.replace("_", " "), row["round"]
    if row["excess"] is None:
        return f"{name} was not measured at round {round_}{_absent(row)}"
    if row["branch"] == "retrain":
        return "the reference"
    if row["reference"] == row["branch"]:
        return "its own reference: what held the data was trained again without them" + _harm(
            row, config, names
        )
    judged = row["judgement"]
    by_name = {one["metric"]: one for one in judged["comparisons"]}
    n = max((one["n"] for one in judged["comparisons"]), default=0)
    shown = "; ".join(_difference(by_name[metric], judged) for metric in (*judged["more"], *judged["less"]))
    said = {
        "above": f"still knows more than the reference at round {round_}: {shown}",
        "below": f"over-forgotten, itself a trace: knows less than the reference at round {round_}: {shown}",
        "mixed": f"differs from the reference both ways at round {round_}: {shown}",
        "same": f"no difference from the reference at round {round_}, within the margins (n = {n})",
        "open": f"no difference from the reference shown at round {round_}, none excluded (n = {n})",
        "unknown": f"{name} is {row['excess']:+.2f} from the reference at round {round_}; not judged",
    }[judged["kind"]]
    return said + _quality(row) + _harm(row, config, names) + _relapse(row, config) + _absent(row)


def _difference(one: Mapping[str, Any], judged: Mapping[str, Any]) -> str:
    """One comparison in words, with its interval."""
    name = NAMES.get(one["metric"], one["metric"].replace("_", " "))
    if one["metric"] == "nll":  # NLL rises as knowledge falls
        ends = f"{-one['high']:+.2f} to {-one['low']:+.2f}"
        return f"{name} {-one['difference']:+.2f} nats a token ({ends}, n = {one['n']})"
    ends = f"{one['low']:+.2f} to {one['high']:+.2f}"
    values = ""
    if one["metric"] == "membership_auc" and judged["membership_auc"] is not None:
        values = f", {judged['membership_auc']:.2f} against {judged['membership_reference']:.2f}"
    return f"{name} {one['difference']:+.2f} ({ends}{values})"


def _quality(row: Mapping[str, Any]) -> str:
    p, n = row.get("forget_quality_p"), row.get("forget_quality_n")
    if p is None or not n or p >= LEVEL:
        return ""
    return f"; its truth ratios are not the reference's (KS D {row['forget_quality_d']:.2f}, n = {int(n)})"


def _harm(row: Mapping[str, Any], config: ProbesConfig, names: ClientNames) -> str:
    worst, null = row.get("collateral_worst"), row.get("collateral_null")
    if worst is None or null is None or worst >= min(null, 0.0) - config.tolerance:
        return ""
    who = names.text(row["collateral_worst_client"])
    return f"; {who}, who stayed, loses {-worst:.2f} (in keep nobody loses more than {max(0.0, -null):.2f})"


def _relapse(row: Mapping[str, Any], config: ProbesConfig) -> str:
    again = row.get("resurgence")
    return (
        "" if again is None or again <= config.tolerance else f"; what was forgotten came back by {again:.2f}"
    )


def _absent(row: Mapping[str, Any]) -> str:
    took_part, asked = row["target_rounds"], min(row["target_asked"], row["rounds"])
    if took_part >= asked:
        return ""
    return f"; the forgetting client took part in {took_part} of the {asked} rounds that asked it"


def quality_note(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the Kolmogorov-Smirnov test of so many records can see at all, and whether its p is shown."""
    n = row.get("forget_quality_n")
    if not n:
        return {"forget_quality_visible": None, "forget_quality_shown": False}
    return {
        "forget_quality_visible": smallest_visible_distance(int(n)),
        "forget_quality_shown": int(n) >= FEW,
    }


def summaries(
    rows: Sequence[Mapping[str, Any]],
    informative: Sequence[Mapping[str, Any]],
    titles: Mapping[str, str],
    notes: Mapping[str, Sequence[str]],
) -> list[dict[str, Any]]:
    """Each variant in a sentence and each method in a word, over what is informative: seeds and requests."""
    told = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        good = {
            (one["seed"], one["request"])
            for one in informative
            if one["variant"] == variant and one["informative"]
        }
        kinds: dict[str, list[Kind]] = {}
        where: dict[tuple[str, Kind], set[int]] = {}
        for row in rows:
            own = row["reference"] == row["branch"] != "retrain"
            if row["variant"] == variant and not own and (row["seed"], row["request"]) in good:
                kind: Kind = row["judgement"]["kind"]
                kinds.setdefault(row["branch"], []).append(kind)
                where.setdefault((row["branch"], kind), set()).add(row["request"])
        methods = {name: together(found) for name, found in kinds.items() if name not in ("keep", "retrain")}
        spoken = {name: kind for name, kind in methods.items() if name != "leave"} or methods
        told.append(
            {
                "variant": variant,
                "title": _title(spoken, titles, where, {request for _, request in good}) if good else None,
                "kinds": methods,
                "notes": list(notes.get(variant, ())),
            }
        )
    return told


def _title(
    kinds: Mapping[str, Kind],
    titles: Mapping[str, str],
    where: Mapping[tuple[str, Kind], set[int]],
    requests: set[int],
) -> str:
    """What was shown first, what stays open last; methods of one kind stand together, unranked.

    Where a kind was shown at some requests only, they are named.
    """
    said = []
    for kind, one, several in SAID:
        names = [titles.get(name, name) for name, found in kinds.items() if found == kind]
        if names:
            told = (one if len(names) == 1 else several).format(_listed(names))
            at = set().union(*(where.get((name, kind), set()) for name in kinds if kinds[name] == kind))
            some = kind in ("below", "above") and at != requests
            said.append(told + (f" (request {_listed([str(one) for one in sorted(at)])})" if some else ""))
    text = "; ".join(said) or "no method of this run was measured at its end"
    return text[0].upper() + text[1:]


def _listed(names: Sequence[str]) -> str:
    """Up to three names, each cut to what a title holds; more are counted."""
    if len(names) > 3:
        return f"{len(names)} methods"
    names = [name if len(name) <= 40 else f"{name[:37].rstrip()}..." for name in names]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def public_notes(tables: LifeTables, config: ProbesConfig, round_: int, public: Collection[str]) -> list[str]:
    """What became of public knowledge in keep and retrain: a damaged reference is said in words."""
    notes = []
    for subject in sorted(public):
        before = tables.value("keep", subject, config.headline, 0)
        after = {name: tables.value(name, subject, config.headline, round_) for name in ("keep", "retrain")}
        if before is None or after["keep"] is None or before - after["keep"] <= config.tolerance:
            continue
        reference = "" if after["retrain"] is None else f" and to {after['retrain']:.2f} in retrain"
        notes.append(
            f"Training costs public knowledge: {config.headline.replace('_', ' ')} of {subject} falls from "
            f"{before:.2f} to {after['keep']:.2f} in keep{reference}, in every method's comparison alike."
        )
    return notes


def divergence_notes(tables: LifeTables, life: Life) -> list[str]:
    """Where keep knows less of what clients train on than the untouched base: training has diverged."""
    notes = []
    for request in life.requests:
        subject = request.subject
        before, after = (tables.value("keep", subject, "nll", at) for at in (0, request.round))
        if before is not None and after is not None and after > before:
            notes.append(
                f"Training diverged: after round {request.round} what the client of request {request.number} "
                f"trained on costs {after:.1f} nats a token in keep, and {before:.1f} before any training; "
                "lower federation.local.lr, or the strategy's own rate."
            )
    return notes


def without_empty_utility(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], bool]:
    """Rows whose utility is null where it is 0 in every branch: nothing was measured by it."""
    known = [row["utility"] for row in rows if row["utility"] is not None]
    if not known or any(known):
        return list(rows), False
    return [{**row, "utility": None, "utility_excess": None} for row in rows], True
