"""Options of PEFT's LoraConfig: which are passed on, and why the others are refused.

An option that is passed on is trained, measured and saved as PEFT defines it; how it is measured is decided
by trying (``fedsim.model_trials``). The rest would be ignored, set twice, or ask for what a scenario cannot
give.
"""

from __future__ import annotations

import difflib
import json
import re
import subprocess
import sys
from collections.abc import Sequence

from fedsim.config import ConfigError

PASSED_ON = frozenset(
    {
        "alpha_pattern",
        "bias",
        "ensure_weight_tying",
        "exclude_modules",
        "fan_in_fan_out",
        "layer_replication",
        "layers_pattern",
        "layers_to_transform",
        "lora_bias",
        "modules_to_save",
        "rank_pattern",
        "target_parameters",
        "trainable_token_indices",
        "use_dora",
        "use_rslora",
    }
)

_OWN = "is said by another key; write {}"
_SET = "is set by fedsim; remove the key"
_START = "is not supported: adapters start from PEFT's default (A random, B zero), drawn anew for every seed"
_QUANTISED = "needs layers of a quantised or Megatron base, which no scenario can name"
_DRAWS = "draws at random, or rewrites the base, outside a run's keyed streams"
_OBJECT = "needs an object of PEFT, which YAML cannot give"

REFUSED = {
    "r": _OWN.format("lora.r"),
    "lora_alpha": _OWN.format("lora.alpha"),
    "lora_dropout": _OWN.format("lora.dropout"),
    "target_modules": _OWN.format("lora.target_modules"),
    "task_type": _SET,
    "peft_type": _SET,
    "auto_mapping": _SET,
    "peft_version": _SET,
    "base_model_name_or_path": _SET,
    "revision": "is model.revision; write it there",
    "inference_mode": "is set by fedsim: an adapter in inference mode has nothing to train; remove the key",
    "init_lora_weights": _START,
    "loftq_config": _START,
    "eva_config": _START,
    "corda_config": _START,
    "lora_ga_config": _START,
    "megatron_config": _QUANTISED,
    "megatron_core": _QUANTISED,
    "use_qalora": _QUANTISED,
    "qalora_group_size": _QUANTISED,
    "velora_config": _DRAWS,
    "monteclora_config": _DRAWS,
    "kasa_config": _DRAWS,
    "runtime_config": _OBJECT,
    "use_bdlora": _OBJECT,
    "arrow_config": _OBJECT,
    "alora_invocation_tokens": (
        "makes the adapter depend on what the prompt says, which packed sequences and shared prefixes "
        "do not keep; remove the key"
    ),
}
"""Why an option is refused, in words that follow its name."""


SLOW = 2.0
"""Seconds that matching a pattern against the names of all layers may take."""
_MATCH = "import json, re, sys; p, n = json.load(sys.stdin); [re.fullmatch(p, x) for x in n]"


def check_pattern(pattern: str, names: Sequence[str]) -> None:
    """Refuse a regular expression that is none, or that does not come to an end on the names of layers.

    Only groups that repeat can take long; such a pattern is tried in a process of its own.

    Raises:
        ConfigError: the error's key is ``target_modules``.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"{pattern!r} is no regular expression ({error}); give names of layers, or all-linear",
            "target_modules",
        ) from None
    if not re.search(r"\)[*+{]", pattern):
        return
    command = [sys.executable, "-I", "-c", _MATCH]
    try:
        subprocess.run(command, input=json.dumps([pattern, list(names)]), text=True, timeout=SLOW, check=True)
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"{pattern!r} takes more than {SLOW:g} s to match the names of layers: a repeated group repeats "
            "inside; write it without, or give names of layers",
            "target_modules",
        ) from None


def check_option(name: str) -> None:
    """Refuse an option that is not passed on to PEFT.

    Raises:
        ConfigError: the message begins with the option, the error's key is that of the option.
    """
    if name in PASSED_ON:
        return
    if name in REFUSED:
        raise ConfigError(f"{name} {REFUSED[name]}", "peft", name)
    near = difflib.get_close_matches(name, PASSED_ON, n=1, cutoff=0.5)
    meant = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(
        f"unknown option {name!r} of PEFT's LoraConfig; {meant}choices: {', '.join(sorted(PASSED_ON))}",
        "peft",
        name,
    )
