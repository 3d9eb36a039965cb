"""What LoRA starts with where papers take it from the base: its weights, or what it makes of records.

``fedsim.model.lora_starts`` names the papers. PiSSA: the largest singular directions of W. OLoRA: the first
columns and rows of W = Q R. EVA: A is the principal components of a layer's inputs, B is zero; all layers
keep their rank. CorDA: the largest (``corda``) or smallest (``corda_kpm``) singular directions of W C, with C
the second moments of the layer's inputs. All but EVA take s B A off the base, in float32. A base in bfloat16
or float16 rounds what is left of it, so that together they are the base up to that rounding.

Everything is computed from the base alone, on the CPU, on one thread of torch, so that each process and each
replica has the same. Legend: O, I features out and in, R rank, K the smaller of O and I, T places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners import lora as peft_lora

from fedsim.config import ConfigError
from fedsim.data.records import Record
from fedsim.model.adapter import isolated_torch_rng
from fedsim.model.config import LoraConfig
from fedsim.model.lora_starts import DRAWN, changes_base, iterations, needs_records
from fedsim.model.plain import encode_record
from fedsim.model.prompts import TextFormat
from fedsim.model.starting import ADAPTER, Start, one_thread
from fedsim.model.text import Pair
from fedsim.rng import torch_stream

FARTHEST = 0.05
"""How far C times its inverse may be from the identity, as in CorDA's own code, before C is damped more."""


MOST_RECORDS = 256
"""Records that a start is taken from, as many as CorDA's authors take."""


def start_of(module: torch.nn.Module, lora: LoraConfig, pairs: Sequence[Pair]) -> Start:
    """Put what ``lora.init`` starts with in place, and give it.

    ``module`` is as PEFT made it, on the CPU, in evaluation mode. ``pairs`` are the records that it learns
    the start from, if it needs any.

    Raises:
        ConfigError: a layer cannot start so; the key is below ``lora``.
    """
    if lora.init in ("default", "gaussian"):
        return Start(init=lora.init)
    layers = {name: m for name, m in module.named_modules() if isinstance(m, peft_lora.LoraLayer)}
    _check_layers(module, layers, lora)
    if lora.init in DRAWN:
        return Start(init=lora.init)
    with torch.no_grad(), one_thread():
        moments = _moments(module, layers, pairs, lora.init) if needs_records(lora.init) else {}
        rounded = []
        for name, layer in layers.items():
            with isolated_torch_rng(torch_stream(0, "adapter-start", name)):
                rounded.append(_put(layer, lora.init, moments.get(name)))
    factors = {
        f"{path}.{factor}.{ADAPTER}.weight": getattr(layer, factor)[ADAPTER].weight.detach().numpy().copy()
        for path, layer in layers.items()
        for factor in ("lora_A", "lora_B")
    }
    off_base = changes_base(lora.init)
    return Start(init=lora.init, factors=factors, off_base=off_base, rounding=max(rounded, default=0.0))


def lesson(lora: LoraConfig, tokenizer: Any, fmt: TextFormat, public: Sequence[Record]) -> list[Pair]:
    """The records that a start is taken from, encoded: at most ``MOST_RECORDS``, spread over the public ones.

    Raises:
        ConfigError: there are none, or the base cannot encode one of them.
    """
    if not needs_records(lora.init):
        return []
    if not public:
        raise ConfigError(
            f"init={lora.init} starts from what the base makes of public records, which nobody asks to be "
            "forgotten, and the data have none; name a file of them in data.public, or use another start",
            "init",
        )
    step = max(1, -(-len(public) // MOST_RECORDS))
    return [encode_record(tokenizer, record, fmt) for record in public[::step]]


def _put(layer: Any, init: str, moments_II: torch.Tensor | None) -> float:
    """Put a layer's start in place and take it off its base; the share of the base that is rounded away."""
    base, rank, scale = layer.get_base_layer(), layer.r[ADAPTER], layer.scaling[ADAPTER]
    stored = base.weight.data.float()
    weight_OI = stored.T if layer.fan_in_fan_out else stored
    if init == "eva":
        assert moments_II is not None
        a_RI = torch.linalg.eigh(moments_II)[1].T.flip(0)[:rank].float()
        b_OR = weight_OI.new_zeros(len(weight_OI), rank)
    elif init == "olora":
        q_OK, r_KI = torch.linalg.qr(weight_OI)
        a_RI, b_OR = r_KI[:rank], q_OK[:, :rank]
    else:
        u_OR, s_R, v_RI = _directions(weight_OI, rank, init, moments_II)
        root_R = (s_R / scale).sqrt()
        a_RI, b_OR = root_R[:, None] * v_RI, u_OR * root_R
    layer.lora_A[ADAPTER].weight.copy_(a_RI)
    layer.lora_B[ADAPTER].weight.copy_(b_OR)
    if not changes_base(init):
        return 0.0
    left_OI = weight_OI - scale * (b_OR @ a_RI)
    kept_OI = left_OI.to(base.weight.dtype)
    base.weight.data = (kept_OI.T if layer.fan_in_fan_out else kept_OI).contiguous()
    return float((kept_OI.float() - left_OI).norm() / weight_OI.norm().clamp(min=1e-12))


def _directions(
    weight_OI: torch.Tensor, rank: int, init: str, moments_II: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Directions (O, R), sizes (R,) and directions (R, I), whose product is taken off W."""
    fast = iterations(init)
    if fast is not None:
        u_OR, s_R, v_IR = torch.svd_lowrank(weight_OI, q=rank, niter=fast)
        return u_OR, s_R, v_IR.T
    if moments_II is None:
        u_OK, s_K, v_KI = torch.linalg.svd(weight_OI, full_matrices=False)
        return u_OK[:, :rank], s_K[:rank], v_KI[:rank]
    damped_II, inverse_II = _inverted(moments_II.float())
    u_OK, s_K, v_KI = torch.linalg.svd(weight_OI @ damped_II, full_matrices=False)
    at = slice(-rank, None) if init == "corda_kpm" else slice(rank)
    return u_OK[:, at], s_K[at], v_KI[at] @ inverse_II


def _inverted(moments_II: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Second moments, damped until they can be inverted, and their inverse."""
    identity_II = torch.eye(len(moments_II))
    damping = 0.01
    while True:
        damped_II = moments_II + damping * moments_II.diag().mean() * identity_II
        inverse_II = torch.linalg.inv(damped_II)
        if torch.dist(damped_II @ inverse_II, identity_II) < FARTHEST or damping > 1:
            return damped_II, inverse_II
        damping *= 2


def _moments(
    module: Any, layers: Mapping[str, Any], pairs: Sequence[Pair], init: str
) -> dict[str, torch.Tensor]:
    """Second moments (I, I) of each layer's inputs, over records; the adapters add nothing yet.

    EVA: around the mean, at the places of answers. CorDA: around zero, at all places, with each record's
    inputs as shares of its largest.

    Raises:
        ConfigError: the records are too few for EVA, or a layer is not reached by finite numbers.
    """
    central = init == "eva"
    count = sum(len(pair.input_ids) - pair.answer_start for pair in pairs) if central else len(pairs)
    rank = max(layer.r[ADAPTER] for layer in layers.values())
    if central and count <= rank:
        raise ConfigError(
            f"init=eva finds {count} tokens of answers in the public records, and rank {rank} needs more; "
            "name more records in data.public, or use a smaller rank",
            "init",
        )
    second: dict[str, Any] = dict.fromkeys(layers, 0.0)
    mean: dict[str, Any] = dict.fromkeys(layers, 0.0)
    with _watched(layers) as seen:
        for pair in pairs:
            module(input_ids=torch.tensor([pair.input_ids]), use_cache=False)
            for name, inputs_TI in seen.items():
                used_TI = inputs_TI[pair.answer_start :] if central else inputs_TI / inputs_TI.max().abs()
                second[name] += used_TI.T @ used_TI / count
                mean[name] += used_TI.sum(0) / count
    unused = next((name for name in layers if name not in seen), None)
    if unused is not None:
        raise ConfigError(f"init={init}: {unused} has no part in a pass over text", "target_modules")
    found = {name: second[name] - central * torch.outer(mean[name], mean[name]) for name in layers}
    odd = next((name for name, moments_II in found.items() if not moments_II.isfinite().all()), None)
    if odd is not None:
        raise ConfigError(f"init={init}: what enters {odd} is not finite; use another start", "init")
    return found


@contextmanager
def _watched(layers: Mapping[str, Any]) -> Iterator[dict[str, torch.Tensor]]:
    """The inputs (T, I) of each layer in the latest pass over one record, in float64."""
    seen: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            seen[name] = inputs[0].flatten(0, -2).double()

        return hook

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _check_layers(module: torch.nn.Module, layers: Mapping[str, Any], lora: LoraConfig) -> None:
    """Refuse layers that cannot start so: not linear, too small for the rank, or sharing their weight."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for path, layer in layers.items():
        if type(layer) is not peft_lora.Linear:
            kind = type(layer.get_base_layer()).__name__
            raise ConfigError(
                f"init={lora.init} starts linear layers, and {path} is of type {kind}; leave it out, or use "
                "default or gaussian",
                "target_modules",
            )
        if lora.init == "orthogonal":
            continue
        rank, most = layer.r[ADAPTER], _largest_rank(layer, lora.init)
        if rank > most:
            raise ConfigError(
                f"rank {rank} is more than init={lora.init} can give {path}, which has {layer.in_features} "
                f"features in and {layer.out_features} out; use {most} or less",
                *(("r",) if rank == lora.r else ("peft", "rank_pattern")),
            )
        shared = names[id(layer.get_base_layer().weight)]
        if changes_base(lora.init) and len(shared) > 1:
            raise ConfigError(
                f"init={lora.init} changes the weight of {path}, which is also {shared[0]}; leave it out of "
                "target_modules, or use another start",
                "init",
            )


def _largest_rank(layer: Any, init: str) -> int:
    """The largest rank that a layer's start can have."""
    return int(layer.in_features if init == "eva" else min(layer.in_features, layer.out_features))
