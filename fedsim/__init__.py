"""A simulation-first federated testbed for unlearning, with a pluggable privacy layer."""

from importlib.util import find_spec
from pathlib import Path


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
