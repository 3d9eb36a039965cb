"""The arithmetic of DP-SGD, for one client or for a whole cohort at once: clip, add up, add noise, divide.

Abadi et al., "Deep Learning with Differential Privacy" (2016). Gradients are rows of one matrix, a sample's
whole gradient each, or whatever gives norms and weighted sums of such rows without forming them. Legend: K
clients, R samples of all clients in order, D trained parameters.

>>> import torch
>>> grads_RD = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 2.0]])
>>> sums_KD, metrics = clip_and_sum(DenseGradients(grads_RD, [2, 1]), [2, 1], clip_norm=1.0)
>>> [[round(value, 3) for value in row] for row in sums_KD.tolist()]
[[0.9, 1.2], [0.0, 1.0]]
>>> [m["clipped"] for m in metrics]
[0.5, 1.0]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from privacy.ledger import Ledger, Release
from privacy.local import Metrics, SampleGradients

if TYPE_CHECKING:
    import torch

BLOCK = 1024
"""Entries whose squares are added up in fp32: few enough for an error far below the margin of clipping."""


@dataclass(frozen=True, slots=True)
class DenseGradients:
    """Gradients (R, D) as a matrix; the first ``counts[0]`` rows are the first client's, and so on."""

    grads_RD: torch.Tensor
    counts: Sequence[int]

    def norms(self) -> torch.Tensor:
        return sample_norms(self.grads_RD)

    def sums(self, factors_R: torch.Tensor) -> torch.Tensor:
        import torch

        factors_R, grads_RD = factors_R.to(self.grads_RD.dtype), self.grads_RD
        if bool((factors_R == 0).any()):
            grads_RD = torch.where(factors_R[:, None] == 0, 0.0, grads_RD)
        counts = list(self.counts)
        parts = zip(torch.split(factors_R, counts), torch.split(grads_RD, counts), strict=True)
        return torch.stack([factors @ part_RD for factors, part_RD in parts])


def clip_and_sum(
    gradients: SampleGradients, counts: Sequence[int], *, clip_norm: float
) -> tuple[torch.Tensor, list[Metrics]]:
    """Clip each sample's gradient to L2 norm ``clip_norm`` and add up each client's, (K, D), in fp32 or fp64.

    The first ``counts[0]`` rows are the first client's, and so on.

    *Guarantees.* Each sample adds a vector of norm at most ``clip_norm``, up to rounding, from which a margin
    of 1e-6 is kept. Samples do not influence each other's factor.

    *Edge cases.* A client without samples gets zeros. A sample whose gradient is not finite counts as zero.
    """
    import torch

    norms_R = gradients.norms()
    finite_R = torch.isfinite(norms_R)
    clipped_R = norms_R > clip_norm
    factors_R = torch.where(clipped_R, clip_norm * (1 - 1e-6) / norms_R, 1.0)
    sums_KD = gradients.sums(torch.where(finite_R, factors_R, 0.0))
    flags = zip(torch.split(clipped_R, list(counts)), torch.split(finite_R, list(counts)), strict=True)
    metrics = [
        {
            "batch_size": float(len(clipped)),
            "clipped": float(clipped.double().mean()) if len(clipped) else 0.0,
            "non_finite": float((~finite).sum()),
        }
        for clipped, finite in flags
    ]
    return sums_KD, metrics


def sample_norms(grads_RD: torch.Tensor) -> torch.Tensor:
    """L2 norm of each row in fp64, (R,): short blocks in the gradients' own type, put together in fp64."""
    import torch

    blocks = [
        torch.linalg.vector_norm(block, dim=1).double() for block in torch.split(grads_RD, BLOCK, dim=1)
    ]
    return torch.stack(blocks).square().sum(0).sqrt()


def draw_noise(
    like_D: torch.Tensor, release: Release, clip_norm: float, generator: torch.Generator, ledger: Ledger
) -> torch.Tensor:
    """Gaussian noise (D,) of the scale that ``release`` states; writes ``release`` down.

    The only place where noise is drawn and the only one that charges for it. It is drawn in fp32 whatever the
    type of ``like_D``, so that a computation in fp64 sees the same noise.
    """
    import torch

    ledger.append(release)
    scale = release.noise_multiplier * clip_norm
    noise_D = torch.randn(like_D.shape, generator=generator, device=like_D.device, dtype=torch.float32)
    return (noise_D * scale).to(like_D.dtype)
