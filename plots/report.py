"""One self-contained page about a run: verdict, life, figures, privacy, provenance.

``python -m plots.report RUNDIR`` draws every figure into ``RUNDIR/figures`` and writes
``RUNDIR/report.html``, which fetches nothing: style and figures are inside it.
"""

from __future__ import annotations

import argparse
import base64
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fedsim.storage.whole import whole_file
from plots import tables, words
from plots.answers import all_quotations
from plots.data import RunData
from plots.epsilon import UNITS
from plots.figures import Drawn, draw_all
from plots.findings import headline
from plots.parts import Request

DATA_FILES = (
    "scenario.yaml",
    "life.json",
    "verdict.json",
    "metrics.parquet",
    "items.parquet",
    "answers.parquet",
    "trajectories.parquet",
    "costs.parquet",
    "timings.parquet",
    "ledger.json",
    "privacy.json",
    "audits.json",
    "provenance.json",
    "events.jsonl",
)
UNPROTECTED = "No privacy stage: nothing protects these updates."


def write_report(run_dir: Path) -> Path:
    """Draw the figures of a finished run and write its report; ValueError when it has not finished."""
    run = RunData.load(run_dir)
    drawn = draw_all(run, run_dir / "figures")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(**_content(run, drawn))
    with whole_file(run_dir / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return run_dir / "report.html"


def _content(run: RunData, drawn: Sequence[Drawn]) -> dict[str, Any]:
    scenario = run.path / "scenario.yaml"
    return {
        "name": run.name,
        "description": run.life.get("description") or "",
        "facts": _facts(run),
        "origin": _origin(run),
        "steps": _life(run),
        "columns": tables.COLUMNS,
        "variants": [_variant(run, v, [d for d in drawn if d.variant == v]) for v in run.variants],
        "across": [_figure(d) for d in drawn if not d.variant],
        "privacy": _privacy(run),
        "unaccounted": bool(run.releases) and not any(key[4] in UNITS for key in run.metrics),
        "provenance": tables.flat(run.provenance),
        "scenario": scenario.read_text(encoding="utf-8") if scenario.exists() else "",
        "files": [name for name in DATA_FILES if (run.path / name).exists()],
        "headline": words.metric_name(run.headline),
        "horizon": run.horizon,
        "several_seeds": len(run.seeds) > 1,
    }


def _facts(run: RunData) -> str:
    parts = [
        words.plural(run.horizon, "round"),
        words.plural(len(run.requests), "request"),
        words.plural(len(run.branches), "branch"),
        words.plural(len(run.seeds), "seed"),
    ]
    if len(run.variants) > 1:
        parts.append(words.plural(len(run.variants), "variant"))
    return " · ".join(parts)


def _origin(run: RunData) -> str:
    """On what, with whom and when: base and data, clients and records, the first start and the last end."""
    base, source = (
        run.scenario.get(part, {}).get(key) for part, key in (("model", "base"), ("data", "source"))
    )
    held = [client["records"] for client in (run.data.get("lives") or [{"clients": []}])[0]["clients"]]
    times = {event["kind"]: event["time"] for event in reversed(run.log) if "time" in event}
    parts = [
        f"base {base}" if base else "",
        f"data {source}" if source else "",
        f"{words.plural(len(held), 'client')} with {words.plural(sum(held), 'record')}" if held else "",
        f"begun {_minute(times['started'])}" if "started" in times else "",
        f"finished {_minute(times['finished'])} UTC" if "finished" in times else "",
    ]
    return " · ".join(filter(None, parts))


def _minute(time: str) -> str:
    """``2026-11-25T16:14:34Z`` as ``2026-11-25 16:14``."""
    return time[:16].replace("T", " ")


def _variant(run: RunData, variant: str, drawn: Sequence[Drawn]) -> dict[str, Any]:
    heads, utilities = tables.utility_rows(run, variant)
    return {
        "name": variant,
        "overrides": next(v.get("overrides") or {} for v in run.life["variants"] if v["name"] == variant),
        "finding": headline(run, variant),
        "banner": _banner(run, variant),
        "notes": list(run.summary(variant).get("notes", ())),
        "requests": [_request(run, variant, r) for r in run.requests],
        "untrusted": [words.metric_name(m) for m, (_, good) in run.trust(variant).items() if not good],
        "utility_heads": heads,
        "utilities": utilities,
        "epsilons": [
            (unit, rows)
            for metric, unit in UNITS.items()
            if (rows := tables.epsilon_rows(run, variant, metric))
        ],
        "views": tables.view_rows(run, variant),
        "promises": tables.promise_rows(run, variant),
        "quotations": all_quotations(run, variant),
        "figures": [_figure(d) for d in drawn],
    }


def _request(run: RunData, variant: str, request: Request) -> dict[str, Any]:
    rows = tables.verdict_rows(run, variant, request)
    return {
        "number": request.request,
        "text": request.text,
        "round": request.round,
        "informative": run.informative(variant, request.request),
        "judged": _judged(run, variant, request),
        "rows": rows,
        "greyed": any(cell.grey for row in rows for cell in row.cells),
    }


def _judged(run: RunData, variant: str, request: Request) -> str:
    """When the request is judged, and on how many seeds and records."""
    checks = [
        check
        for check in run.verdict["informative"]
        if check["variant"] == variant and check["request"] == request.request
    ]
    rounds = sorted({r["round"] for b in run.branches for r in run.rows(variant, b.name, request.request)})
    when = words.listing([str(round_) for round_ in rounds or [run.horizon]])
    good, n = len(run.good_seeds(variant, request.request)), min((c.get("n") or 0 for c in checks), default=0)
    seeds = f"{good} of {words.plural(len(checks), 'seed')} informative" if len(checks) > 1 else "one seed"
    return f"Judged after round {when}; {seeds}; {words.plural(n, 'record')}."


def _banner(run: RunData, variant: str) -> dict[str, Any]:
    """Whether the run can show forgetting, with the checks' own sentences, without repetition."""
    checks = [check for check in run.verdict["informative"] if check["variant"] == variant]
    good = [run.informative(variant, r.request) for r in run.requests]
    state = "informative" if good and all(good) else "partly informative" if any(good) else "NOT informative"
    said: dict[tuple[int, str], list[str]] = {}
    for check in checks:
        said.setdefault((check["request"], check.get("sentence") or ""), []).append(str(check["seed"]))
    sentences = [f"Request {r}{_seeds(run, who)}: {text}" for (r, text), who in sorted(said.items())]
    return {"state": state, "good": state == "informative", "sentences": sentences}


def _seeds(run: RunData, seeds: Sequence[str]) -> str:
    if len(run.seeds) == 1:
        return ""
    return ", every seed" if len(seeds) == len(run.seeds) else f", seed {words.listing(seeds, 9)}"


def _life(run: RunData) -> list[dict[str, Any]]:
    """Events in order, each with the rounds of training that precede it; the horizon closes the strip."""
    steps: list[dict[str, Any]] = []
    at = 0
    for event in sorted(run.events, key=lambda e: e.round):
        if event.kind == "probe":
            continue
        text = event.text or event.label
        steps.append({"rounds": event.round - at, "round": event.round, "kind": event.kind, "text": text})
        at = event.round
    end = f"horizon, after round {run.horizon}"
    return [*steps, {"rounds": run.horizon - at, "round": run.horizon, "kind": "end", "text": end}]


def _privacy(run: RunData) -> list[str]:
    """What stands above the tables: that nothing protects, or which sums tell too much."""
    views = run.privacy.get("views", ())
    protected = any(view["example"] or view["client"] or view["hidden_among"] > 1 for view in views)
    bare = [] if protected or run.releases else [UNPROTECTED]
    return [*bare, *(str(sentence) for sentence in run.privacy.get("sentences", ()))]


def _figure(drawn: Drawn) -> dict[str, str]:
    code = base64.b64encode(drawn.svg.read_bytes()).decode("ascii")
    return {
        "title": drawn.title,
        "caption": drawn.caption,
        "source": f"data:image/svg+xml;base64,{code}",
        "png": f"figures/{drawn.png.name}",
        "svg": f"figures/{drawn.svg.name}",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: write the report of one run directory and print its path."""
    parser = argparse.ArgumentParser(prog="python -m plots.report", description="Draw a finished run.")
    parser.add_argument("run_dir", type=Path, help="a run directory")
    try:
        print(write_report(parser.parse_args(arguments).run_dir))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
