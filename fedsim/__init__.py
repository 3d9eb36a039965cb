"""A simulation-first federated testbed for unlearning, with a pluggable privacy layer.

``load`` reads a scenario, ``run`` runs it, ``open`` opens a finished run; see `fedsim.app.face`. Importing
this package imports no library: each comes when it is needed.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.app.face import Run, ScenarioError, load, run
    from fedsim.app.face import open_run as open

__all__ = ["Run", "ScenarioError", "load", "open", "run"]


def _check_neighbours() -> None:
    """Refuse to run with somebody else's ``privacy`` or ``plots`` in the place of fedsim's own.

    Raises:
        ImportError: another folder of that name comes first on the path; the message names it.
    """
    home = Path(__file__).resolve().parent.parent
    for name in ("privacy", "plots"):
        spec = find_spec(name)
        found = Path(spec.origin).resolve().parent if spec is not None and spec.origin else None
        if found != home / name:
            raise ImportError(
                f"{found or name}: is imported as {name!r} in place of fedsim's own package {home / name}; "
                "start from another folder, or rename yours"
            )


_check_neighbours()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("fedsim.app.face"), "open_run" if name == "open" else name)
