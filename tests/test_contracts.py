"""Promises about the source that import-linter cannot state."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for package in ("fedsim", "privacy", "plots") for path in (ROOT / package).rglob("*.py")
)
FLOWER_PRIVATE = ("flwr.supercore", "flwr.proto", "flwr.common", "flwr.server", "flwr.compat")


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def is_below(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def calls(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def test_only_the_grid_touches_flowers_private_modules() -> None:
    users = {
        path.name
        for path in SOURCES
        for module in imported(path)
        if any(is_below(module, private) for private in FLOWER_PRIVATE)
    }
    assert users == {"grid.py", "control.py", "superlink.py"}  # the latter two, its Control API


def test_plots_know_of_fedsim_only_how_to_read_a_run() -> None:
    used = {
        module
        for path in SOURCES
        if path.is_relative_to(ROOT / "plots")
        for module in imported(path)
        if is_below(module, "fedsim") or is_below(module, "privacy")
    }
    assert used == {"fedsim.storage.directory", "fedsim.storage.whole"}


@pytest.mark.parametrize("module", ["pickle", "cloudpickle", "dill", "joblib"])
def test_nothing_is_pickled(module: str) -> None:
    assert not [path for path in SOURCES if module in {name.split(".")[0] for name in imported(path)}]


def test_global_generators_are_seeded_in_isolation_only() -> None:
    seeding = {"random.seed", "np.random.seed", "numpy.random.seed", "torch.manual_seed", "torch.seed"}
    users = {path.name for path in SOURCES if seeding & set(calls(path))}
    assert users <= {"adapter.py", "recipe.py"}  # both inside torch.random.fork_rng
    for path in SOURCES:
        assert path.name not in users or "fork_rng" in path.read_text()


def test_reading_a_run_needs_no_torch() -> None:
    code = "import sys, plots.report, fedsim.storage.directory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_no_file_and_no_function_of_the_rooms_is_long() -> None:
    """At most 300 lines a file, 45 a function, 8 parameters."""
    for path in (ROOT / "fedsim").rglob("*.py"):
        text = path.read_text()
        assert text.count("\n") <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                assert lines <= 45, f"{path}: {node.name} has {lines} lines"
                taken = len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs)
                assert taken <= 8, f"{path}: {node.name} takes {taken} parameters"
