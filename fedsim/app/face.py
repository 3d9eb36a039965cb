"""fedsim from Python: load a scenario, run it, look at what came of it.

>>> import fedsim
>>> scenario = fedsim.load("scenarios/quickstart.yaml", {"compare": ["npo"], "seeds": [2]})
>>> scenario.scenario.seeds
(2,)
"""

from __future__ import annotations

import base64
import html
import json
import os
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.places import ScenarioError
from fedsim.scenario.file import LoadedScenario, load_scenario
from fedsim.storage.directory import RunDirectory
from fedsim.storage.whole import folder_name

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure

    from fedsim.model.predictor import Predictor
    from fedsim.model.vectors import Arrays
    from plots.data import RunData

Overrides = Mapping[str, object] | Sequence[str]


def load(scenario: str | Path, overrides: Overrides = ()) -> LoadedScenario:
    """Read and check a scenario file, with keys replaced.

    ``overrides`` is a mapping of dotted keys (``{"federation.local.lr": 0.1}``), or strings as for ``--set``.

    Raises:
        ScenarioError: a ValueError with a line for each problem.
    """
    if isinstance(overrides, Mapping):
        overrides = [f"{key}={json.dumps(value, default=os.fspath)}" for key, value in overrides.items()]
    return load_scenario(Path(scenario), list(overrides))


def run(
    scenario: str | Path | LoadedScenario, *, out: str | Path | None = None, progress: bool = False
) -> Run:
    """Run a scenario to its end and draw its report.

    A run that was interrupted goes on, a finished one is opened. ``out`` is the run directory, ``runs/NAME``
    when left out. ``progress`` shows a live line.

    Raises:
        ScenarioError: something cannot be used, or ``out`` holds another run; nothing is changed.
    """
    from rich.console import Console

    from fedsim.app import runs
    from fedsim.app.quiet import quiet_libraries
    from fedsim.assembly.hub import go_offline_unless_reachable
    from fedsim.storage.progress import Quiet, make_progress
    from plots.report import write_report

    loaded = scenario if isinstance(scenario, LoadedScenario) else load(scenario)
    go_offline_unless_reachable(variant.scenario for variant in loaded.variants)
    quiet_libraries()
    directory = RunDirectory(Path(out) if out is not None else Path("runs") / loaded.scenario.name)
    checked = runs.prepare(loaded, directory)
    shown = make_progress(Console(stderr=True)) if progress else Quiet()
    try:
        runs.execute(checked, directory, shown)
    finally:
        shown.close()
    write_report(directory.path)
    return Run(directory.path)


def open_run(path: str | Path) -> Run:
    """A finished run.

    Raises:
        ValueError: there is no run, or it has not finished.
    """
    opened = Run(Path(path))
    opened.verdict  # noqa: B018  (read now, so that what is missing is said now)
    return opened


class Run:
    """A finished run, read from its directory; a table and a picture in a notebook."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._directory = RunDirectory(path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @cached_property
    def verdict(self) -> dict[str, Any]:
        """``verdict.json``: whether the run is informative, and a row for each branch and request."""
        if not self._directory.file("verdict.json").exists():
            raise ValueError(f"{self.path}: no finished run here; see fedsim.run and fedsim resume")
        found: dict[str, Any] = self._directory.json("verdict")
        return found

    @property
    def report(self) -> Path:
        """The page that the run ended with."""
        return self.path / "report.html"

    def table(self, name: str) -> pa.Table:
        """A table of the run as Arrow: metrics, items, trajectories, costs or timings.

        Raises:
            ValueError: there is no such table.
        """
        from fedsim.storage.tables import TABLES

        if name not in TABLES:
            raise ValueError(f"table={name!r} is unknown; choices: {', '.join(TABLES)}")
        return self._directory.table(name)

    def figure(self, name: str = "timeline", *, variant: str | None = None) -> Figure:
        """A figure of the report.

        Raises:
            ValueError: there is no such figure, or the run has no data for it.
        """
        from plots.figures import FIGURES

        kinds = {kind.name: kind for kind in FIGURES}
        if name not in kinds:
            raise ValueError(f"figure={name!r} is unknown; choices: {', '.join(kinds)}")
        figure = kinds[name].draw(self._data, self._variant(variant))
        if figure is None:
            raise ValueError(f"figure={name!r}: this run has no data for it")
        return figure

    def adapter(self, branch: str, *, variant: str | None = None, seed: int | None = None) -> Arrays:
        """The trained parameters at the end of a branch, fp32, under the names of their PEFT directory."""
        from safetensors.numpy import load_file

        folder = self.adapter_directory(branch, variant=variant, seed=seed)
        (file,) = folder.glob("*.safetensors")
        return dict(load_file(file))

    def adapter_directory(self, branch: str, *, variant: str | None = None, seed: int | None = None) -> Path:
        """Where the adapter at the end of a branch lies, for ``AutoPeftModelForCausalLM``.

        ``seed`` is the first one when left out.

        Raises:
            ValueError: there is no such branch or seed.
        """
        variant, seed = self._variant(variant), self._seed(seed)
        ended = [
            event
            for event in self._directory.events()
            if event["kind"] == "segment" and (event["variant"], event["seed"]) == (variant, seed)
        ]
        if branch == "retrain":
            numbers = [int(name[8:]) for e in ended for name in e["branches"] if name.startswith("retrain#")]
            branch = f"retrain#{max(numbers)}" if numbers else "keep"
        own = [event for event in ended if branch in event["branches"]]
        if not own:
            raise ValueError(self._why_no_adapter(branch, {name for e in ended for name in e["branches"]}))
        from fedsim.living.checkpoints import branch_folder

        last = max(own, key=lambda event: int(event["last"]))
        owner = branch_folder(last["branches"][0])
        place = Path("checkpoints") / folder_name(variant) / str(seed) / f"round-{last['last']:04d}" / owner
        return self.path / place / "adapter"

    def _why_no_adapter(self, branch: str, lived: Collection[str]) -> str:
        parts = sorted(name for name in lived if name.startswith(f"{branch}/"))
        if parts:
            return f"branch={branch!r} is an ensemble and has no adapter of its own, but {', '.join(parts)}"
        named = [str(each["name"]) for each in self._directory.json("life")["branches"]]
        return f"branch={branch!r} is not in this run; choices: {', '.join(named)}"

    def predictor(
        self, branch: str, *, variant: str | None = None, seed: int | None = None
    ) -> tuple[Predictor, Any]:
        """The model at the end of a branch as its users see it, guards included, and its tokenizer.

        Loads base and data; two predictors of a run have a base each.
        """
        from fedsim.app import runs
        from fedsim.assembly.build import make_context
        from fedsim.living.views import Views
        from fedsim.model.saving import load_adapter
        from fedsim.storage.whole import read_json

        variant, seed = self._variant(variant), self._seed(seed)
        checked = runs.reopen(self._directory)
        named = {each.name: each for each in checked.loaded.variants}
        context = make_context(checked, named[variant], seed)
        views = Views(context)
        ensemble = next((one for one in context.composed if one.name == branch), None)
        names = [branch] if ensemble is None else ensemble.at(len(context.life.requests))
        folders = [self.adapter_directory(name, variant=variant, seed=seed) for name in names]
        adapters = [load_adapter(context.model, folder) for folder in folders]
        if ensemble is not None:
            versions = [read_json(folder.parent / "state.json")["version"] for folder in folders]
            parts = list(zip(versions, adapters, strict=True))
            return views.joined(ensemble, parts), context.model.tokenizer
        context.model.load(adapters[0])
        (view,) = views.of([branch])
        return views.predictor(context.model.module, view, context.life.horizon), context.model.tokenizer

    def _repr_html_(self) -> str:
        """The verdict as a table and the timeline as a picture, for notebooks."""
        parts = [_table(self._data, variant) for variant in self._data.variants]
        for variant in self._data.variants:
            parts.append(self._picture(variant))
        return "".join(parts)

    @cached_property
    def _data(self) -> RunData:
        from plots.data import RunData

        return RunData.load(self.path)

    def _variant(self, variant: str | None) -> str:
        known = [str(each["name"]) for each in self._directory.json("life")["variants"]]
        if variant is not None and variant not in known:
            raise ValueError(f"variant={variant!r} is not in this run; choices: {', '.join(known)}")
        return known[0] if variant is None else variant

    def _seed(self, seed: int | None) -> int:
        known = [int(each) for each in self._directory.json("life")["seeds"]]
        if seed is not None and seed not in known:
            raise ValueError(f"seed={seed} is not in this run; choices: {', '.join(map(str, known))}")
        return known[0] if seed is None else seed

    def _picture(self, variant: str) -> str:
        from plots.figures import file_name

        file = self.path / "figures" / f"{file_name(self._data, 'timeline', variant)}.png"
        if not file.exists():
            return ""
        data = base64.b64encode(file.read_bytes()).decode()
        return f'<img style="max-width: 60em; width: 100%" src="data:image/png;base64,{data}">'


def _table(run: RunData, variant: str) -> str:
    """The verdicts of a variant, a table for each request."""
    from plots.tables import COLUMNS, verdict_rows

    parts = [] if len(run.variants) == 1 else [f"<h4>{html.escape(variant)}</h4>"]
    if title := run.summary(variant).get("title"):
        parts.append(f"<p>{html.escape(title)}.</p>")
    for request in run.requests:
        head = "".join(f"<th>{html.escape(column.head)}</th>" for column in COLUMNS)
        rows = "".join(
            f"<tr><td>{html.escape(row.branch)}</td>"
            + "".join(f"<td>{html.escape(cell.text)}</td>" for cell in row.cells)
            + "</tr>"
            for row in verdict_rows(run, variant, request)
        )
        title = f"Request {request.request}: {html.escape(request.who)}, after round {request.round}"
        parts.append(
            f"<p><b>{title}</b></p><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        )
    return "".join(parts)


__all__ = ["Run", "ScenarioError", "load", "open_run", "run"]
