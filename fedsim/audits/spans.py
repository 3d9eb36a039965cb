"""Which vectors lie in the row space of a matrix that carries rounding or noise.

A gradient matrix is a sum of outer products, so its rows are combinations of a few vectors. Whoever holds the
matrix can test whether a vector is one of them. The rank is where the singular values drop for the last time;
what is behind the drop tells how noisy the entries are, and first-order perturbation theory how far from the
measured span a vector of the true one may then lie (Wedin, 1972, "Perturbation bounds in connection with
singular value decomposition"). Legend: R rows, E length of a row, D rank, N vectors.

>>> span = Span.of(np.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [2.0, 1.0, 0.0]]))
>>> span.rank, span.residuals(np.array([[3.0, 4.0, 0.0], [0.0, 3.0, 4.0]])).round(3).tolist()
(2, [0.0, 0.8])
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

DROP = 3.0
"""How many times smaller the first singular value of noise is than the last one of the signal, at least."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A row space as it could be measured.

    ``basis_ED`` has orthonormal columns, ``strengths_D`` their singular values, largest first; ``noise`` is
    the standard deviation of an entry's error, in the unit of the matrix.
    """

    basis_ED: Float64
    strengths_D: Float64
    noise: float

    @classmethod
    def of(cls, matrix_RE: NDArray[np.floating]) -> Span:
        """Measure the row space. Its rank is the place of the last drop by ``DROP`` between singular values.

        The last, not the largest: signals may be far apart, while the values of noise lie close together.

        Edge cases: rank 0 for a matrix of zeros; full rank, min(R, E), when no singular value is ``DROP``
        times smaller than the one before, as in a matrix of noise.
        """
        matrix = np.asarray(matrix_RE, dtype=np.float64)
        rows, length = matrix.shape
        _, strengths, directions = np.linalg.svd(matrix, full_matrices=False)
        if not strengths.size or strengths[0] == 0.0:
            return cls(basis_ED=np.zeros((length, 0)), strengths_D=np.zeros(0), noise=0.0)
        least = np.finfo(np.float64).eps * max(rows, length) * strengths[0]
        bounded = np.maximum(strengths, least)
        drops = bounded[:-1] / bounded[1:]
        steep = np.flatnonzero(drops >= DROP)
        rank = int(steep[-1]) + 1 if steep.size else len(strengths)
        rest = (rows - rank) * (length - rank)
        noise = float(np.sqrt((strengths[rank:] ** 2).sum() / rest)) if rest else 0.0
        return cls(basis_ED=directions[:rank].T, strengths_D=strengths[:rank], noise=noise)

    @property
    def rank(self) -> int:
        return len(self.strengths_D)

    @property
    def tells(self) -> bool:
        """Whether it separates vectors at all: some directions are in it, some are not."""
        return 0 < self.rank < len(self.basis_ED)

    def residuals(self, x_NE: NDArray[np.floating]) -> Float64:
        """The share of each vector's length that is outside the span, (N,) in [0, 1]; 1 for zeros."""
        x = np.asarray(x_NE, dtype=np.float64)
        lengths_N = np.linalg.norm(x, axis=-1)
        outside_N = np.linalg.norm(x - (x @ self.basis_ED) @ self.basis_ED.T, axis=-1)
        shares_N: Float64 = np.divide(outside_N, lengths_N, out=np.ones_like(lengths_N), where=lengths_N > 0)
        return shares_N

    def rounding(self, x_NE: NDArray[np.floating]) -> Float64:
        """The residual that noise alone is expected to leave of each vector, if it is in the true span, (N,).

        A direction of strength s turns by about ``noise`` / s towards each direction outside.
        """
        x = np.asarray(x_NE, dtype=np.float64)
        lengths_N = np.linalg.norm(x, axis=-1)
        turns_N = np.linalg.norm((x @ self.basis_ED) / self.strengths_D, axis=-1)
        left_N = self.noise * np.sqrt(len(self.basis_ED) - self.rank) * turns_N
        shares_N: Float64 = np.divide(left_N, lengths_N, out=np.zeros_like(lengths_N), where=lengths_N > 0)
        return shares_N
