"""How LoRA's factors may start: the names, as PEFT has them, and what each of them cannot go with.

Drawn at random: ``default`` (Hu et al., 2021, arXiv:2106.09685), ``gaussian``, ``orthogonal``. Taken from
the base's weights: ``pissa`` (Meng et al., 2024, arXiv:2404.02948), ``pissa_niter_N``, its fast form by N
passes of power iteration, and ``olora`` (Büyükakyüz, 2024, arXiv:2406.01775). Taken from what the base makes
of public records: ``eva`` (Paischer et al., 2024, arXiv:2410.07170), ``corda`` and ``corda_kpm`` (Yang et
al., 2024, arXiv:2406.05223).

>>> changes_base("pissa_niter_4"), changes_base("eva"), needs_records("eva")
(True, False, True)
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from fedsim.config import ConfigError

DRAWN = ("default", "gaussian", "orthogonal")
"""Drawn anew for every seed."""
FROM_RECORDS = ("eva", "corda", "corda_kpm")
"""Need records that the base knows."""
CHOICES = (*DRAWN, "pissa", "pissa_niter_N", "olora", *FROM_RECORDS)

_FAST = re.compile(r"pissa_niter_(\d{1,3})")


def iterations(init: str) -> int | None:
    """The N of ``pissa_niter_N``; None for every other start.

    >>> iterations("pissa_niter_16"), iterations("pissa")
    (16, None)
    """
    found = _FAST.fullmatch(init)
    return int(found[1]) if found else None


def changes_base(init: str) -> bool:
    """Whether the base gives up what the factors start with, so that together they are the base."""
    return init not in DRAWN and init != "eva"


def needs_records(init: str) -> bool:
    """Whether the start is taken from what the base makes of records."""
    return init in FROM_RECORDS


def known_start(init: str) -> str:
    """A start, as it was written.

    Raises:
        ValueError: there is no such start; the message names the choices and the nearest.
    """
    if (init in CHOICES and init != "pissa_niter_N") or iterations(init) is not None:
        return init
    near = difflib.get_close_matches(init, CHOICES, n=1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(
        f"found {init!r}; {meant}choices: {', '.join(CHOICES)}, with N a whole number of at most three digits"
    )


def check_start(init: str, rank: int, options: Mapping[str, Any]) -> None:
    """Refuse a start that does not go with the rank, or with one of PEFT's ``options``.

    Raises:
        ConfigError: its key is below ``lora``.
    """
    if init == "default":
        return
    for name, why in _apart(init).items():
        if options.get(name):
            raise ConfigError(f"{name} does not go with lora.init={init}: {why}", "peft", name)
    if init == "orthogonal":
        ranks: dict[tuple[str, ...], int] = {("r",): rank}
        ranks |= {("peft", "rank_pattern", at): r for at, r in (options.get("rank_pattern") or {}).items()}
        for key, value in ranks.items():
            if value % 2:
                raise ConfigError(
                    f"rank {value} is odd, and lora.init=orthogonal gives each factor half of the "
                    f"directions; use {value + 1}",
                    *key,
                )


def _apart(init: str) -> dict[str, str]:
    """Options that a start does not go with, and why."""
    found = {"lora_bias": "PEFT takes it with the default start alone"}
    if init != "gaussian":
        found["target_parameters"] = "only whole linear layers start so"
    if changes_base(init):
        found["use_dora"] = (
            "what the start took from the base is put back by a second pair of factors, which DoRA would "
            "scale with the first"
        )
        found["layer_replication"] = "replicated layers share the weights that the start changes"
    return found
