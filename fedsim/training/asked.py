"""What the clients of a cohort are asked in a step: their records, each with one answer or with two.

Legend: K clients, A answers of a record, R records of a client.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.model.forward import Pass
from fedsim.model.text import Batch, collate
from fedsim.training.jobs import TrainJob

Positions = NDArray[np.int64]
"""Which of a client's records are in a step."""


class Asked:
    """All texts of a cohort in one batch, client by client, and which of them a step is about.

    Jobs show their losses the same kind of answers. ``longest`` is the length of the longest text.
    """

    def __init__(self, jobs: Sequence[TrainJob], *, pad_id: int) -> None:
        texts_KA = [job.texts for job in jobs]
        every = [pair for texts_A in texts_KA for pairs in texts_A for pair in pairs]
        self.batch = collate(every, pad_id=pad_id)
        self.longest = max((len(pair.input_ids) for pair in every), default=0)
        self.rows_KAR: list[NDArray[np.int64]] = []
        first = 0
        for texts_A in texts_KA:
            shape = len(texts_A), len(texts_A[0])
            self.rows_KAR.append(first + np.arange(shape[0] * shape[1]).reshape(shape))
            first += shape[0] * shape[1]

    def rows(self, client: int, chosen: Positions) -> NDArray[np.int64]:
        """Where in the batch the texts of a client's records are: all first answers, then all second ones."""
        return self.rows_KAR[client][:, chosen].reshape(-1)

    def texts(self, positions: Sequence[Positions]) -> tuple[Batch, list[int]]:
        """The texts of a step, client by client, and how many each has."""
        rows = [self.rows(client, chosen) for client, chosen in enumerate(positions)]
        return self.batch.take(torch.from_numpy(np.concatenate(rows))), list(map(len, rows))

    def tokens(self, client: int, chosen: Positions) -> int:
        """Tokens of the texts of a client's records."""
        return int(self.batch.lengths_B[self.rows(client, chosen)].sum())

    def by_record(self, found: Pass, positions: Sequence[Positions]) -> Pass:
        """A pass over a step's texts as one with a sample for each record."""
        if self.rows_KAR[0].shape[0] == 1:
            return found
        return found.with_refusals([len(chosen) for chosen in positions])
