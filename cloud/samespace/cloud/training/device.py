"""Where training runs: any device that torch has, one process or many."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from samespace.cloud.training.memory import keep_memory
from samespace.sdk.errors import ConfigError

__all__ = ["World", "choose_device", "open_world"]

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class World:
    """The processes that train together; a single one is a world of size 1.

    Under torchrun the gradients are averaged over processes (DistributedDataParallel), each of which gets its share of every
    batch. The result is that of one process with the whole batch, apart from two things: batch norm has the share's statistics
    unless the device can synchronise them (CUDA), and losses over the pairs of a batch see the share's pairs alone. Buffers
    (running statistics) are those of the first process. The first process
    alone writes files.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, batch: int) -> slice:
        """This process's rows of a batch.

        Raises:
            ConfigError: the batch cannot be divided evenly.
        """
        if batch % self.size:
            raise ConfigError(
                f"batch = {batch} cannot be divided among {self.size} processes; make it a multiple of {self.size}"
            )
        part = batch // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def synchronised(self, module: Module) -> Module:
        """The module with batch norm over all processes, where the device can."""
        if self.size > 1 and self.device.type == "cuda":
            return cast(Module, nn.SyncBatchNorm.convert_sync_batchnorm(module))
        return module

    def wrapped(self, module: nn.Module) -> nn.Module:
        """The module as it is called in training: its gradients come out averaged over all processes."""
        if self.size == 1:
            return module
        return DistributedDataParallel(module, device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; all processes must ask."""
        if self.size == 1:
            return flag
        total = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(total, dist.ReduceOp.MAX)
        return bool(total.item())

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes; all must ask."""
        if self.size > 1:
            dist.all_reduce(values, dist.ReduceOp.SUM)
            values = values / self.size
        return values

    def broadcast(self, tensors: list[Tensor]) -> None:
        """Overwrite tensors with the first process's."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def broadcast_bytes(self, data: bytes | None) -> bytes | None:
        """The first process's bytes, in all processes: so that a folder need not be shared between machines."""
        if self.size == 1:
            return data
        length = torch.tensor([-1 if data is None else len(data)], dtype=torch.int64, device=self.device)
        dist.broadcast(length, 0)
        if length.item() < 0:
            return None
        if self.first:
            buffer = torch.frombuffer(bytearray(data or b""), dtype=torch.uint8).to(self.device)
        else:
            buffer = torch.empty(int(length.item()), dtype=torch.uint8, device=self.device)
        dist.broadcast(buffer, 0)
        return buffer.cpu().numpy().tobytes()

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            self.any(False)


def choose_device(wanted: str) -> torch.device:
    """``auto`` (an accelerator if torch finds one, else the CPU), or any name torch knows: ``cpu``, ``cuda:1``, ``mps``.

    Raises:
        ConfigError: torch has no such device here.
    """
    if wanted == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        device = found or torch.device("cpu")
    else:
        try:
            device = torch.device(wanted)
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"device = {wanted!r} is not usable here ({reason}); use 'auto' or 'cpu'") from None
    return device


@contextmanager
def open_world(wanted: str) -> Iterator[World]:
    """Join the processes that torchrun started, or be alone; leaves the group when the block ends.

    Raises:
        ConfigError: as :func:`choose_device`.
    """
    device = choose_device(wanted)
    if device.type == "cpu":
        keep_memory()
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    joined_before = dist.is_initialized()
    if not joined_before:
        dist.init_process_group(dist.get_default_backend_for_device(device))
    try:
        yield World(device, dist.get_rank(), dist.get_world_size())
    finally:
        if not joined_before:
            dist.destroy_process_group()
