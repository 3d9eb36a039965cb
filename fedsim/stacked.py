"""LoRA for many clients at once: one product with the frozen base, each client's own low-rank delta.

While a stack is applied, every adapted layer computes ``x W + scale (x A_k) B_k`` with the factors of the
client whose row it is, so one pass over everybody's rows gives what each client's own pass would. LoRA: Hu
et al., 2021, arXiv:2106.09685. Legend: K clients, R rows of all clients in order, T positions, D trained
parameters, M rows times positions of one client, I and O features in and out, r rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import peft
import torch
from peft.tuners.lora import LoraLayer
from transformers.pytorch_utils import Conv1D

from fedsim.model import AdapterModel

ADAPTER = "default"


class NotStackableError(ValueError):
    """The model's adapters cannot be computed for several clients at once; the message says why."""


def why_not_stackable(model: AdapterModel) -> str | None:
    """Why clients of this model must train one at a time, or None if they need not; found by trying two."""
    return _unfit(model) or _trial(model)


def _unfit(model: AdapterModel) -> str | None:
    """What is trained that is no plain pair of factors."""
    if not isinstance(model.module, peft.PeftModel):
        return "all parameters of the base are trained"
    layers = {path: m for path, m in model.module.named_modules() if isinstance(m, LoraLayer)}
    for path, layer in layers.items():
        kind = type(layer.get_base_layer())
        if layer.lora_variant:
            return f"{path} is adapted by a variant of LoRA ({type(layer.lora_variant[ADAPTER]).__name__})"
        if kind not in (torch.nn.Linear, Conv1D):
            return f"{path} is adapted and a {kind.__name__}, not a linear layer"
        if layer.lora_bias[ADAPTER]:
            return f"{path} trains a bias with its factors"
        if not isinstance(layer.lora_dropout[ADAPTER], torch.nn.Identity):
            return "dropout is drawn for each client"
    for name in model.names:
        path, _, factor = name.rpartition(".lora_")
        if path not in layers or factor not in (f"A.{ADAPTER}.weight", f"B.{ADAPTER}.weight"):
            return f"{name} is trained, which is no factor of a LoRA layer"
    return None


@torch.no_grad()
def _trial(model: AdapterModel) -> str | None:
    """Why two clients' rows do not come out as PEFT's own layers compute them."""
    lora = StackedLora(model)
    ids_RT = torch.arange(6, device=model.device).view(2, 3)
    own_D = torch.cat([parameter.flatten() for parameter in model.parameters().values()])
    try:
        with lora.applied(lora.factors(torch.stack([own_D, own_D])), [1, 1]) as module:
            joint = module(input_ids=ids_RT, use_cache=False).logits
    except NotStackableError as error:
        return str(error)
    alone = model.module(input_ids=ids_RT, use_cache=False).logits
    off, eps = (joint - alone).abs().max(), torch.finfo(alone.dtype).eps
    return None if off <= 16 * eps * alone.abs().max() else "a joint pass differs from each client's own"


@dataclass(frozen=True)
class _Rows:
    """How the rows of a batch are dealt to clients: client k has ``counts[k]`` of them, in order."""

    counts: tuple[int, ...]
    slots_R: torch.Tensor | None

    @classmethod
    def of(cls, counts: Sequence[int], device: str) -> _Rows:
        widest = max(counts)
        if all(count == widest for count in counts):
            return cls(tuple(counts), None)
        slots = [client * widest + row for client, count in enumerate(counts) for row in range(count)]
        return cls(tuple(counts), torch.tensor(slots, device=device))

    def split(self, x_RTI: torch.Tensor) -> torch.Tensor:
        """Rows by client, (K, M, I); clients with fewer rows are filled up with zeros."""
        clients, widest = len(self.counts), max(self.counts)
        if self.slots_R is not None:
            empty = x_RTI.new_zeros(clients * widest, *x_RTI.shape[1:])
            x_RTI = empty.index_copy(0, self.slots_R, x_RTI)
        return x_RTI.reshape(clients, -1, x_RTI.shape[-1])

    def join(self, y_KMO: torch.Tensor, positions: int) -> torch.Tensor:
        """The inverse of ``split``: (R, T, O)."""
        y_RTO = y_KMO.reshape(-1, positions, y_KMO.shape[-1])
        return y_RTO if self.slots_R is None else y_RTO.index_select(0, self.slots_R)


class StackedLora:
    """The LoRA layers of a model, ready to compute with one pair of factors per client.

    A vector (D,) holds the trained parameters in the order of ``model.names``.

    Raises:
        NotStackableError: something is trained that is no plain pair of factors.
    """

    def __init__(self, model: AdapterModel) -> None:
        reason = _unfit(model)
        if reason is not None:
            raise NotStackableError(reason)
        self.model = model
        parameters = model.parameters()
        self.shapes = {name: parameters[name].shape for name in model.names}
        self.dimension = sum(shape.numel() for shape in self.shapes.values())
        self.dtype = parameters[model.names[0]].dtype
        self._layers: dict[str, Any] = {
            path: layer for path, layer in model.module.named_modules() if isinstance(layer, LoraLayer)
        }

    def factors(self, vectors_KD: torch.Tensor) -> dict[str, torch.Tensor]:
        """Each trained parameter for all clients, (K, *shape), as views."""
        parts = torch.split(vectors_KD, [shape.numel() for shape in self.shapes.values()], dim=1)
        named = zip(self.shapes.items(), parts, strict=True)
        return {name: part.view(len(vectors_KD), *shape) for (name, shape), part in named}

    @contextmanager
    def applied(self, factors: Mapping[str, torch.Tensor], counts: Sequence[int]) -> Iterator[Any]:
        """The module, computing client k's rows with client k's factors; rows stand in order of clients."""
        rows = _Rows.of(counts, self.model.device)
        try:
            for path, layer in self._layers.items():
                layer.forward = _forward(layer, path, factors, rows)
            yield self.model.module
        finally:
            for layer in self._layers.values():
                layer.__dict__.pop("forward", None)


def _forward(
    layer: Any, path: str, factors: Mapping[str, torch.Tensor], rows: _Rows
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A layer's forward under stacked factors; what is not trained is the layer's own for everybody."""
    a = factors.get(f"{path}.lora_A.{ADAPTER}.weight", layer.lora_A[ADAPTER].weight)
    b = factors.get(f"{path}.lora_B.{ADAPTER}.weight", layer.lora_B[ADAPTER].weight)
    scale = layer.scaling[ADAPTER]
    base = layer.get_base_layer()
    fused = base.weight.dtype == b.dtype
    weight_OI = base.weight.mT if isinstance(base, Conv1D) else base.weight

    def forward(x_RTI: torch.Tensor) -> torch.Tensor:
        if x_RTI.dim() != 3 or len(x_RTI) != sum(rows.counts):
            raise NotStackableError(
                f"{path} is given {tuple(x_RTI.shape)}, not a row of positions for each of "
                f"{sum(rows.counts)} sequences"
            )
        if fused and rows.slots_R is None:
            x_KMI = rows.split(x_RTI)
            out_KMO = _LowRankUpdate.apply(x_KMI, weight_OI, base.bias, a, b, scale)  # type: ignore[no-untyped-call]
            return rows.join(cast(torch.Tensor, out_KMO), x_RTI.shape[1])
        out_RTO: torch.Tensor = base(x_RTI)
        delta_KMO = torch.matmul(torch.matmul(rows.split(x_RTI).to(a.dtype), a.mT), b.mT)
        joint_RTO: torch.Tensor = out_RTO + scale * rows.join(delta_KMO, x_RTI.shape[1])
        return joint_RTO.to(out_RTO.dtype)

    return forward


class _LowRankUpdate(torch.autograd.Function):
    """``x W' + bias + scale (x A') B'`` without temporaries of full width; A may be one for all clients."""

    @staticmethod
    def forward(
        ctx: Any,
        x_KMI: torch.Tensor,
        weight_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        a: torch.Tensor,
        b_KOr: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        h_KMr = torch.matmul(x_KMI, a.mT)
        out_KMO = torch.nn.functional.linear(x_KMI, weight_OI, bias_O)
        ctx.save_for_backward(x_KMI, weight_OI, a, b_KOr, h_KMr)
        ctx.scale = scale
        return out_KMO.baddbmm_(h_KMr, b_KOr.mT, alpha=scale)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (g_KMO,) = grads
        x_KMI, weight_OI, a, b_KOr, h_KMr = ctx.saved_tensors
        needs_x, _, _, needs_a, needs_b, _ = ctx.needs_input_grad
        u_KMr = torch.bmm(g_KMO, b_KOr).mul_(ctx.scale)
        grad_x = grad_a = grad_b = None
        if needs_x:
            grad_x = torch.matmul(g_KMO, weight_OI)
            grad_x = grad_x.baddbmm_(u_KMr, a) if a.dim() == 3 else grad_x.add_(torch.matmul(u_KMr, a))
        if needs_a:
            grad_a = torch.bmm(u_KMr.mT, x_KMI)
        if needs_b:
            grad_b = torch.bmm(g_KMO.mT, h_KMr).mul_(ctx.scale)
        return grad_x, None, None, grad_a, grad_b, None
