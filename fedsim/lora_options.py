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
from collections.abc import Mapping, Sequence

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


SLOW = 4.0
"""Seconds that matching all patterns against the names of all layers may take."""

_PLAIN = re.compile(r"[\w.-]*")
_TRIAL = """
import json, re, sys
patterns, names = json.load(sys.stdin)

def starts(name):  # PEFT lets some patterns begin after any dot
    return [0, *(dot.end() for dot in re.finditer("[.]", name))]

for pattern in patterns:
    try:
        compiled = re.compile(pattern)
        for name in names:
            for at in starts(name):
                compiled.fullmatch(name, at)
                compiled.match(name, at)
        print(flush=True)
    except (re.error, RecursionError, OverflowError) as error:
        print(error, flush=True)
"""

Key = tuple[str, ...]


def patterns_of(target_modules: object, options: Mapping[str, object]) -> dict[Key, str]:
    """What PEFT will read as regular expressions, by key below ``lora``, plain names left out.

    ``target_modules`` as in a scenario (a list holds names, no patterns), ``options`` those under ``peft``.
    """
    found: dict[Key, object] = {}
    if target_modules != "all-linear":
        found["target_modules",] = target_modules
    found["peft", "exclude_modules"] = options.get("exclude_modules")
    for name in ("layers_pattern", "modules_to_save"):
        values = options.get(name)
        several = values if isinstance(values, list | tuple) else [values]
        found |= {("peft", name, str(at)): value for at, value in enumerate(several)}
    for name in ("rank_pattern", "alpha_pattern"):
        table = options.get(name)
        found |= {("peft", name, str(key)): key for key in (table if isinstance(table, Mapping) else ())}
    return {key: text for key, text in found.items() if isinstance(text, str) and not _PLAIN.fullmatch(text)}


def check_patterns(patterns: Mapping[Key, str], names: Sequence[str]) -> None:
    """Refuse a regular expression that is none, or that does not come to an end on the names of layers.

    They are tried in a process of their own, which can be ended; PEFT's own matching cannot.

    Raises:
        ConfigError: the error's key is that of the first pattern at fault.
    """
    if not patterns:
        return
    command = [sys.executable, "-I", "-c", _TRIAL]
    asked = json.dumps([list(patterns.values()), [f"base_model.model.{name}" for name in names]])
    try:
        done = subprocess.run(command, input=asked, text=True, timeout=SLOW, stdout=subprocess.PIPE)
        said, ended = done.stdout.split("\n"), True
    except subprocess.TimeoutExpired as slow:
        said, ended = (slow.stdout or b"").decode().split("\n"), False
    for (key, pattern), wrong in zip(patterns.items(), said[:-1], strict=False):
        if wrong:
            raise ConfigError(
                f"{pattern!r} is no regular expression ({wrong}); give names of layers, or all-linear", *key
            )
    if len(said) <= len(patterns):
        key, pattern = list(patterns.items())[len(said) - 1]
        problem = (
            "could not be tried" if ended else f"takes more than {SLOW:g} s to match the names of layers"
        )
        raise ConfigError(
            f"{pattern!r} {problem}: its repeats overlap; write it with fewer, or give names of layers", *key
        )


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
