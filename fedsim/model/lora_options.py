"""Options of PEFT's LoraConfig: which are passed on, and why the others are refused.

An option that is passed on is trained, measured and saved as PEFT defines it; how it is measured is decided
by trying (see ``abilities``). The rest would be ignored, set twice, or ask for what a scenario cannot
give.
"""

from __future__ import annotations

import difflib
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, Strict, TypeAdapter, ValidationError

from fedsim.config import ConfigError

Whole = Annotated[int, Strict(), Field(ge=0)]
Rank = Annotated[int, Strict(), Field(ge=1, le=1024)]
Names = Annotated[list[str], Field(min_length=1)]
Alpha = Annotated[float, Strict(), Field(gt=0, le=1e6)]

_TRUTH: tuple[Any, str] = (Annotated[bool, Strict()], "true or false")
_NAMES: tuple[Any, str] = (Names, "a list of names")
PASSED_ON: Mapping[str, tuple[Any, str]] = {
    "alpha_pattern": (dict[str, Alpha], "a mapping of names to numbers above 0"),
    "bias": (Literal["none", "all", "lora_only"], "none, all or lora_only"),
    "ensure_weight_tying": _TRUTH,
    "exclude_modules": (str | Names, "a regular expression or a list of names"),
    "fan_in_fan_out": _TRUTH,
    "layer_replication": (
        Annotated[list[Annotated[list[Whole], Field(min_length=2, max_length=2)]], Field(min_length=1)],
        "a list of pairs of whole numbers",
    ),
    "layers_pattern": (str | Names, "a name or a list of names"),
    "layers_to_transform": (
        Whole | Annotated[list[Whole], Field(min_length=1)],
        "a whole number or a list of them",
    ),
    "lora_bias": _TRUTH,
    "modules_to_save": _NAMES,
    "rank_pattern": (dict[str, Rank], "a mapping of names to whole numbers from 1 to 1024"),
    "target_parameters": _NAMES,
    "trainable_token_indices": (
        Annotated[list[Whole], Field(min_length=1)] | dict[str, Annotated[list[Whole], Field(min_length=1)]],
        "a list of token ids, or a mapping of layers to such lists",
    ),
    "use_dora": _TRUTH,
    "use_rslora": _TRUTH,
}
"""What is passed on: the type of each option, and its rule in words."""

_OWN = "is said by another key; write {}"
_SET = "is set by fedsim; remove the key"
_START = "is not supported: it starts from {}; lora.init has the starts there are"
_QUANTISED = "needs layers of GPTQ or Megatron, which fedsim does not load; remove the key"
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
    "init_lora_weights": _OWN.format("lora.init"),
    "loftq_config": _START.format("a base that LoftQ itself quantises, and model.quantize does not"),
    "eva_config": _OWN.format("lora.init: eva"),
    "corda_config": _OWN.format("lora.init: corda or corda_kpm"),
    "lora_ga_config": _START.format("gradients of what is to be learnt, which no client has shown yet"),
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


def check_option(name: str, value: object) -> None:
    """Refuse an option that is not passed on to PEFT, or a value that PEFT would misread.

    PEFT takes any value for any option: text where true or false is meant counts as true, and text where a
    list is meant as a list of its letters. None stands for PEFT's default.

    Raises:
        ConfigError: the message begins with the option, the error's key is that of the option.
    """
    if name in PASSED_ON:
        kind, rule = PASSED_ON[name]
        try:
            if value is not None:
                TypeAdapter(kind).validate_python(value)
        except ValidationError:
            raise ConfigError(f"{name} is {value!r}; must be {rule}", "peft", name) from None
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


def check_matches(
    options: Mapping[str, Any], modules: Sequence[str], parameters: Sequence[str], tokens: int
) -> None:
    """Refuse options that name what the base does not have, which PEFT passes over.

    ``modules`` and ``parameters`` are the base's names, ``tokens`` how many it embeds. Patterns must have
    been tried (``check_patterns``).

    Raises:
        ConfigError: the error's key is that of the option.
    """
    for option, names in (("modules_to_save", modules), ("target_parameters", parameters)):
        for one in options.get(option) or ():
            _check_found(option, one, _is_among(one, names))
    for option in ("rank_pattern", "alpha_pattern"):
        for one in options.get(option) or ():
            _check_found(option, one, any(re.match(rf"(.*\.)?({one})$", name) for name in modules))
    excluded = options.get("exclude_modules") or ()
    if isinstance(excluded, str):
        _check_found("exclude_modules", excluded, any(re.fullmatch(excluded, name) for name in modules))
    else:
        for one in excluded:
            _check_found("exclude_modules", one, _is_among(one, modules))
    given = options.get("trainable_token_indices") or ()
    for ids in given.values() if isinstance(given, Mapping) else [given]:
        if ids and max(ids) >= tokens:
            raise ConfigError(
                f"trainable_token_indices names token {max(ids)}; the base embeds {tokens} tokens",
                "peft",
                "trainable_token_indices",
            )


def check_targets(targets: str | Sequence[str], modules: Sequence[str], linears: Sequence[str]) -> None:
    """Refuse a list that names a layer that the base does not have, beside one that it has.

    Raises:
        ConfigError: names the nearest linear layer; the key is ``target_modules``.
    """
    for one in () if isinstance(targets, str) else targets:
        if not _is_among(one, modules):
            near = difflib.get_close_matches(one, linears, n=1)
            meant = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(
                f"{one!r} is no layer of this base; {meant}its linear layers are {', '.join(linears)}, or "
                "use all-linear",
                "target_modules",
            )


def _is_among(name: str, names: Sequence[str]) -> bool:
    """Whether a name is one of the full names, or the end of one."""
    return any(full == name or full.endswith(f".{name}") for full in names)


def _check_found(option: str, name: str, found: bool) -> None:
    if not found:
        raise ConfigError(f"{option} names {name!r}, which the base does not have", "peft", option)
