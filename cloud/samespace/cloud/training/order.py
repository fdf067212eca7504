"""Which images make up step n: a pure function of (seed, step), so that a resumed run sees the batches it would have seen."""

from __future__ import annotations

import torch
from torch import Tensor

from samespace.cloud.training.seeds import generator
from samespace.sdk.errors import DataError

__all__ = ["BatchOrder"]


class BatchOrder:
    """Batches from an endless row of shuffled epochs; a batch may span two of them.

    Args:
        images: size of the training set, at least 1.
        batch: images a step, over all processes.
        seed: of the shuffling.
        stage: another stage of a run shuffles otherwise.

    Raises:
        DataError: the training set is empty.
    """

    def __init__(self, images: int, batch: int, seed: int, stage: str) -> None:
        if images < 1:
            raise DataError("the training split holds no image; give the data more classes or more images")
        self.images, self.batch, self.seed, self.stage = images, batch, seed, stage
        self._epochs: dict[int, Tensor] = {}

    def indices(self, step: int) -> Tensor:
        """``(batch,)`` int64 indices into the training set, on the CPU; ``step`` counts from 0."""
        first = step * self.batch
        parts, position = [], first
        while position < first + self.batch:
            epoch, offset = divmod(position, self.images)
            parts.append(self._epoch(epoch)[offset : offset + first + self.batch - position])
            position += len(parts[-1])
        return torch.cat(parts)

    def _epoch(self, epoch: int) -> Tensor:
        if epoch not in self._epochs:
            shuffled = torch.randperm(
                self.images, generator=generator(torch.device("cpu"), self.seed, "order", self.stage, epoch)
            )
            self._epochs = {epoch - 1: self._epochs[epoch - 1]} if epoch - 1 in self._epochs else {}
            self._epochs[epoch] = shuffled
        return self._epochs[epoch]
