"""LoRA for many clients at once: one product with the frozen base, each client's own low-rank delta.

While a stack is applied, every adapted layer computes ``x W + scale (x A_k) B_k`` with the factors of the
client whose place it is, so one pass over everybody's rows gives what each client's own pass would. LoRA: Hu
et al., 2021, arXiv:2106.09685. Legend: K clients, S rows and P positions of what is fed or all places of it
counted through, M places of one client, D trained parameters, I and O features in and out, r rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import peft
import torch
from peft.tuners.lora import LoraLayer
from transformers.pytorch_utils import Conv1D

from fedsim.model.adapter import AdapterModel
from fedsim.model.blocks import Block, products, split
from fedsim.model.checkpointing import around
from fedsim.model.starting import ADAPTER
from fedsim.training.dropout import Masks, drops, rate_of
from fedsim.training.sample_gradients import LayeredGradients

TRIAL_SCALE = 0.1
"""Size of the factors of a trial: large enough that its effect exceeds rounding, even in half precision."""


class NotStackableError(ValueError):
    """The model's adapters cannot be computed for several clients at once; the message says why."""


def why_not_stackable(model: AdapterModel) -> str | None:
    """Why clients of this model must train one at a time, or None if they need not; found by trying two."""
    return why_not_plain(model) or _trial(model)


def why_not_plain(model: AdapterModel) -> str | None:
    """What is trained that is no plain pair of factors, or None."""
    if not isinstance(model.module, peft.PeftModel):
        return "all parameters of the base are trained"
    layers = {path: m for path, m in model.module.named_modules() if isinstance(m, LoraLayer)}
    for path, layer in layers.items():
        kind = type(layer.get_base_layer())
        if layer.lora_variant:
            return f"{path} is adapted by a variant of LoRA ({type(layer.lora_variant[ADAPTER]).__name__})"
        if not issubclass(kind, (torch.nn.Linear, Conv1D)):
            return f"{path} is adapted and a {kind.__name__}, not a linear layer"
        if layer.lora_bias[ADAPTER]:
            return f"{path} trains a bias with its factors"
    for name in model.names:
        path, _, factor = name.rpartition(".lora_")
        if path not in layers or factor not in (f"A.{ADAPTER}.weight", f"B.{ADAPTER}.weight"):
            return f"{name} is trained, which is no factor of a LoRA layer"
    return None


def _trial(model: AdapterModel) -> str | None:
    """Why two clients' rows do not come out as PEFT's own layers compute them, or their gradients do not."""
    lora = StackedLora(model)
    parameters = model.parameters()
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(2, lora.dimension, generator=generator).to(model.device, lora.dtype) * TRIAL_SCALE
    factors = lora.leaves(vectors)
    ids_SP = torch.arange(6, device=model.device).view(2, 3)
    try:
        with lora.applied(factors, [Block(groups=2, places=ids_SP.shape[1])]) as module:
            joint = module(input_ids=ids_SP, use_cache=False).logits
        reached = torch.autograd.grad(joint.sum(), list(factors.values()), allow_unused=True)
        own = [_own_logits(model, {n: part[k] for n, part in factors.items()}, ids_SP) for k in range(2)]
    except NotStackableError as error:
        return str(error)
    finally:
        with torch.no_grad():
            for name, value in before.items():
                parameters[name].copy_(value)
    for name, gradient in zip(factors, reached, strict=True):
        if gradient is None:
            return f"{name} has no part in a pass over text"
    expected = torch.stack([own[0][0], own[1][1]])
    effect = (own[0] - own[1]).abs().max()
    off = (joint.detach() - expected).abs().max()
    return None if off <= 0.1 * effect else "a joint pass differs from each client's own"


@torch.no_grad()
def _own_logits(
    model: AdapterModel, values: Mapping[str, torch.Tensor], ids_SP: torch.Tensor
) -> torch.Tensor:
    """What PEFT's layers give with one client's parameters in place."""
    for name, parameter in model.parameters().items():
        parameter.copy_(values[name])
    logits: torch.Tensor = model.module(input_ids=ids_SP, use_cache=False).logits
    return logits


class StackedLora:
    """The LoRA layers of a model, ready to compute with one pair of factors per client.

    A vector (D,) holds the trained parameters in the order of ``model.names``.

    Raises:
        NotStackableError: something is trained that is no plain pair of factors.
    """

    def __init__(self, model: AdapterModel) -> None:
        reason = why_not_plain(model)
        if reason is not None:
            raise NotStackableError(reason)
        self.model = model
        parameters = model.parameters()
        self.shapes = {name: parameters[name].shape for name in model.names}
        self.dimension = sum(shape.numel() for shape in self.shapes.values())
        self.dtype = parameters[model.names[0]].dtype
        self.drops = drops(model.module)
        self._layers: dict[str, Any] = {
            path: layer for path, layer in model.module.named_modules() if isinstance(layer, LoraLayer)
        }

    def factors(self, vectors_KD: torch.Tensor) -> dict[str, torch.Tensor]:
        """Each trained parameter for all clients, (K, *shape), as views."""
        parts = torch.split(vectors_KD, [shape.numel() for shape in self.shapes.values()], dim=1)
        named = zip(self.shapes.items(), parts, strict=True)
        return {name: part.view(len(vectors_KD), *shape) for (name, shape), part in named}

    def leaves(self, vectors_KD: torch.Tensor) -> dict[str, torch.Tensor]:
        """The same, that gradients are taken of."""
        return {name: part.requires_grad_() for name, part in self.factors(vectors_KD).items()}

    def applied(
        self,
        factors: Mapping[str, torch.Tensor],
        blocks: Sequence[Block],
        samples: LayeredGradients | None = None,
        masks: Masks | None = None,
    ) -> AbstractContextManager[Any]:
        """The module, computing the places of group k of the blocks with client k's factors.

        With ``samples``, a backward pass leaves its gradients there, and none at the factors. Without
        ``masks``, nothing is dropped.
        """
        forwards = {
            path: _forward(layer, path, factors, tuple(blocks), samples, masks)
            for path, layer in self._layers.items()
        }
        return around(partial(self._with, forwards))

    @contextmanager
    def _with(self, forwards: Mapping[str, Callable[[torch.Tensor], torch.Tensor]]) -> Iterator[Any]:
        try:
            for path, layer in self._layers.items():
                layer.__dict__["forward"] = forwards[path]
            yield self.model.module
        finally:
            for layer in self._layers.values():
                layer.__dict__.pop("forward", None)


def _forward(
    layer: Any,
    path: str,
    factors: Mapping[str, torch.Tensor],
    blocks: tuple[Block, ...],
    samples: LayeredGradients | None,
    masks: Masks | None,
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A layer's forward under stacked factors; what is not trained is the layer's own for everybody."""
    names = f"{path}.lora_A.{ADAPTER}.weight", f"{path}.lora_B.{ADAPTER}.weight"
    a = factors.get(names[0], layer.lora_A[ADAPTER].weight)
    b = factors.get(names[1], layer.lora_B[ADAPTER].weight)
    base = layer.get_base_layer()
    weight_OI = _weight_of(base)
    dropped = 0.0 if masks is None else rate_of(layer)
    rule = _Rule(
        scale=layer.scaling[ADAPTER] / (1 - dropped),
        blocks=blocks,
        names=names,
        samples=samples,
        computed=weight_OI is None,
    )
    places = sum(block.groups * block.places for block in blocks)

    def forward(x_SPI: torch.Tensor) -> torch.Tensor:
        if x_SPI.dim() != 3 or x_SPI.shape[0] * x_SPI.shape[1] != places:
            raise NotStackableError(
                f"{path} is given {tuple(x_SPI.shape)}, not rows of positions, {places} in all"
            )
        x_PI = x_SPI.reshape(places, -1)
        kept_PI = masks.draw(path, dropped, x_PI.shape[1]) if masks is not None and dropped > 0 else None
        computed = weight_OI is None
        frozen = (base(x_SPI).reshape(places, -1), None) if computed else (weight_OI, base.bias)
        out = _LowRankUpdate.apply(x_PI, a, b, *frozen, rule, kept_PI)  # type: ignore[no-untyped-call]
        return cast(torch.Tensor, out).view(*x_SPI.shape[:2], -1)

    return forward


def _weight_of(base: Any) -> torch.Tensor | None:
    """The weight (O, I) that a frozen layer multiplies with; None where only its own forward pass knows."""
    if type(base) is Conv1D:
        return base.weight.mT
    return base.weight if type(base) is torch.nn.Linear else None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rule:
    """How the places of a layer meet its factors, and where gradients go."""

    scale: float
    blocks: tuple[Block, ...]
    names: tuple[str, str]
    samples: LayeredGradients | None
    computed: bool
    """Whether the frozen layer's product is given and not its weight."""

    def each(self, factor: torch.Tensor) -> Sequence[torch.Tensor]:
        """A factor for each block: those of its clients, or the one that all have."""
        if factor.dim() == 2:
            return [factor] * len(self.blocks)
        return torch.split(factor, [block.groups for block in self.blocks])


class _LowRankUpdate(torch.autograd.Function):
    """``x W' + bias + scale (x A') B'`` without temporaries of full width; A or B may be one for all clients.

    The base is frozen; products with factors are in the factors' type. ``frozen`` is W (O, I), or for layers
    that compute in their own way, as quantised ones do, their product (P, O), through which autograd goes on
    by itself. Of what goes into A, ``kept_PI`` is kept if it is given.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_PI: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        frozen: torch.Tensor,
        bias_O: torch.Tensor | None,
        rule: _Rule,
        kept_PI: torch.Tensor | None,
    ) -> torch.Tensor:
        out_PO = frozen.clone() if rule.computed else torch.nn.functional.linear(x_PI, frozen, bias_O)
        hidden = []
        in_PI = x_PI if kept_PI is None else x_PI * kept_PI
        sides = split(in_PI, rule.blocks), split(out_PO, rule.blocks), rule.each(a), rule.each(b)
        for x_KMI, out_KMO, a_block, b_block in zip(*sides, strict=True):
            h_KMr = torch.matmul(x_KMI.to(a.dtype), a_block.mT).mul_(rule.scale)
            _add_product(out_KMO, h_KMr, b_block.mT)
            hidden.append(h_KMr.flatten(0, 1))
        weight_OI = None if rule.computed else frozen
        ctx.save_for_backward(x_PI, a, b, weight_OI, torch.cat(hidden), kept_PI)
        ctx.rule = rule
        return out_PO

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        g_PO = grads[0].contiguous()
        x_PI, a, b, weight_OI, h_Pr, kept_PI = ctx.saved_tensors
        needs_x, needs_a, needs_b = ctx.needs_input_grad[:3]
        rule: _Rule = ctx.rule
        u_Pr = torch.cat(
            [
                torch.matmul(g_KMO.to(b.dtype), b_block).mul_(rule.scale).flatten(0, 1)
                for g_KMO, b_block in zip(split(g_PO, rule.blocks), rule.each(b), strict=True)
            ]
        )
        grad_frozen = g_PO if rule.computed else None
        grad_x = None
        if needs_x:
            grad_x = torch.zeros_like(x_PI) if rule.computed else torch.matmul(g_PO, weight_OI)
            through_a = grad_x if kept_PI is None else torch.zeros_like(grad_x)
            sides = split(through_a, rule.blocks), split(u_Pr, rule.blocks), rule.each(a)
            for to_KMI, u_KMr, a_block in zip(*sides, strict=True):
                _add_product(to_KMI, u_KMr, a_block)
            if kept_PI is not None:
                grad_x += through_a * kept_PI
        in_PI = x_PI if kept_PI is None else x_PI * kept_PI
        if rule.samples is not None:
            if needs_a:
                rule.samples.add(rule.names[0], u_Pr, in_PI.to(a.dtype))
            if needs_b:
                rule.samples.add(rule.names[1], g_PO.to(b.dtype), h_Pr)
            return grad_x, None, None, grad_frozen, None, None, None
        grad_a = products(u_Pr, in_PI.to(a.dtype), rule.blocks) if needs_a else None
        grad_b = products(g_PO.to(b.dtype), h_Pr, rule.blocks) if needs_b else None
        return grad_x, grad_a, grad_b, grad_frozen, None, None, None


def _add_product(to_KMF: torch.Tensor, left_KMr: torch.Tensor, right: torch.Tensor) -> None:
    """Add each client's ``left right`` in place; ``right`` is (K, r, F), or (r, F) for all."""
    if right.dim() == 3 and to_KMF.dtype == left_KMr.dtype:
        to_KMF.baddbmm_(left_KMr, right)
    else:
        to_KMF.add_(torch.matmul(left_KMr, right))
