"""What the steps of a cohort gave and took: losses and tokens, by client. Legend: K clients, R records."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fedsim.training.asked import Asked, Positions


class Notes:
    """Losses stay on the device until they are asked for, so that no step waits for them.

    ``passes`` are made over a step's texts.
    """

    def __init__(self, asked: Asked, *, clients: int, passes: int) -> None:
        self.asked, self.passes = asked, passes
        self.tokens_K = np.zeros(clients, dtype=np.int64)
        self._steps: list[tuple[torch.Tensor, list[int]]] = []

    def add(self, positions: Sequence[Positions], parts: Sequence[tuple[torch.Tensor, list[int]]]) -> None:
        """Write down a step over records of the first clients.

        ``parts`` have their losses (R,) and how many of them each client has.
        """
        values_R = parts[0][0] if len(parts) == 1 else _by_client(parts)
        self._steps.append((values_R, [len(chosen) for chosen in positions]))
        for client, chosen in enumerate(positions):
            self.tokens_K[client] += self.passes * self.asked.tokens(client, chosen)

    def losses(self) -> list[list[float]]:
        """Each client's mean loss in each of its steps."""
        columns = [_means(values_R, sizes) for values_R, sizes in self._steps]
        return [
            [column[client] for column in columns if client < len(column)]
            for client in range(len(self.tokens_K))
        ]


def _by_client(parts: Sequence[tuple[torch.Tensor, list[int]]]) -> torch.Tensor:
    """The losses of a step's parts, client by client."""
    pieces = [torch.split(values_R, sizes) for values_R, sizes in parts]
    return torch.cat([of_clients[client] for client in range(len(pieces[0])) for of_clients in pieces])


def _means(losses_R: torch.Tensor, sizes: Sequence[int]) -> list[float]:
    """Each client's mean loss; 0 for an empty batch."""
    parts = torch.split(losses_R.cpu(), list(sizes))
    return [float(part.mean()) if len(part) else 0.0 for part in parts]
