"""Embedding shards of images: by this process, by one process a core, or by Ray; always by the same function."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from samespace.sdk.embedder import Embedder
from samespace.sdk.errors import GalleryError, ImageError, MissingExtraError
from samespace.sdk.identity import digest
from samespace.sdk.runtimes.base import RuntimeOptions

__all__ = ["EmbeddedShard", "Model", "Shard", "ShardEmbedder", "embedded_by_ray", "embedded_here"]


@dataclass(frozen=True)
class Shard:
    """Some images to embed.

    Attributes:
        key: by which a ledger knows it.
        files: item id and path of each.
        metadata: of each.
    """

    key: str
    files: tuple[tuple[str, Path], ...]
    metadata: tuple[dict[str, str], ...]


@dataclass(frozen=True)
class EmbeddedShard:
    """``(n, d)`` float32 vectors of those images of a shard that can be read, and why the others cannot."""

    shard: Shard
    ids: tuple[str, ...]
    vectors: npt.NDArray[np.float32]
    metadata: tuple[dict[str, str], ...]
    broken: tuple[tuple[Path, str], ...]


@dataclass(frozen=True)
class Model:
    """What every worker opens. Arguments as of :meth:`samespace.sdk.embedder.Embedder.open`; threads of each worker."""

    bundle: str
    runtime: str | None = None
    artifact: str | None = None
    allow_unsigned: bool = False
    threads: int = 0
    providers: tuple[str, ...] = ()

    def open(self) -> Embedder:
        """A new embedder."""
        options = RuntimeOptions(threads=self.threads, providers=self.providers)
        return Embedder.open(self.bundle, self.runtime, self.artifact, options, allow_unsigned=self.allow_unsigned)


class Embed(Protocol):
    """Embeds shards, in any order; errors of the model are raised."""

    def __call__(self, shards: Iterable[Shard]) -> Iterator[EmbeddedShard]: ...


class ShardEmbedder:
    """Embeds one shard; the same in this process, in a worker and in Ray."""

    def __init__(self, model: Model | Embedder) -> None:
        self._embedder = model if isinstance(model, Embedder) else model.open()

    def __call__(self, shard: Shard) -> EmbeddedShard:
        """Embed what can be read.

        Raises:
            EmbeddingError, RuntimeFailure: as :meth:`Embedder.embed_tensors`; that is the model's fault, not a picture's.
        """
        kept, broken, rows = list[int](), list[tuple[Path, str]](), list[npt.NDArray[np.float32]]()
        batch = max(1, self._embedder.runtime.options.batch_size)
        places = iter(range(len(shard.files)))
        while part := list(islice(places, batch)):
            tensors = []
            for place in part:
                item_id, path = shard.files[place]
                try:
                    data = path.read_bytes()
                    if digest(data) != item_id:
                        broken.append((path, "was changed while it was added; add it again"))
                        continue
                    tensors.append(self._embedder.preprocess(data))
                    kept.append(place)
                except OSError as error:
                    broken.append((path, error.strerror or str(error)))
                except ImageError as error:
                    broken.append((path, str(error).removeprefix("<bytes>: ")))
            if tensors:
                rows.append(self._embedder.embed_tensors(np.stack(tensors)))
        vectors = np.concatenate(rows) if rows else np.empty((0, self._embedder.dim), np.float32)
        ids = tuple(shard.files[place][0] for place in kept)
        return EmbeddedShard(shard, ids, vectors, tuple(shard.metadata[place] for place in kept), tuple(broken))


def embedded_here(shards: Iterable[Shard], model: Model, workers: int, embedder: Embedder) -> Iterator[EmbeddedShard]:
    """Embed with ``workers`` processes, each with one thread; with one worker, in this process with ``embedder``.

    At most two shards a worker are under way. The processes end with this one, even if it is killed.

    Raises:
        GalleryError: a worker died.
    """
    if workers <= 1:
        yield from map(ShardEmbedder(embedder), shards)
        return
    remaining, under_way = iter(shards), deque[Future[EmbeddedShard]]()
    # A worker is a fresh process: a copy of this one would share its runtime's threads, which do not survive that.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin, initargs=(model,))
    try:
        while True:
            for shard in islice(remaining, 2 * workers - len(under_way)):
                under_way.append(pool.submit(_embed, shard))
            if not under_way:
                return
            yield under_way.popleft().result()
    except BrokenProcessPool:
        raise GalleryError(
            "a worker died while it embedded (killed, or out of memory); what was acknowledged is kept: run it again, with "
            "fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def embedded_by_ray(shards: Iterable[Shard], model: Model, workers: int, address: str | None) -> Iterator[EmbeddedShard]:
    """Embed with Ray Data: ``workers`` actors, on whatever machines the cluster has; all of them must see the files.

    Args:
        address: of the cluster; None starts Ray here.

    Raises:
        MissingExtraError: Ray is not installed.
    """
    try:
        import ray  # type: ignore[import-not-found]
        import ray.data  # type: ignore[import-not-found]
    except ImportError:
        raise MissingExtraError("ray", "embedding with Ray") from None
    work = list(shards)
    if not work:
        return
    mine = not ray.is_initialized()
    if mine:
        ray.init(address=address, num_cpus=workers if address is None else None, include_dashboard=False, log_to_driver=False)
    try:
        data = ray.data.from_items(work, override_num_blocks=len(work))
        # One shard at a time: one that is done need not wait for others before it is added.
        done = data.map_batches(
            _RayEmbedder,
            batch_size=1,
            batch_format="numpy",
            fn_constructor_args=(model,),
            concurrency=workers,
            num_cpus=1,
        )
        for row in done.iter_rows():
            yield row["shard"]
    finally:
        if mine:
            ray.shutdown()


class _RayEmbedder(ShardEmbedder):
    def __call__(self, batch: Any) -> Any:
        made = np.empty(len(batch["item"]), dtype=object)
        for place, shard in enumerate(batch["item"]):
            made[place] = super().__call__(shard)
        return {"shard": made}


_worker: ShardEmbedder | None = None


def _begin(model: Model) -> None:
    """Of each worker process."""
    global _worker
    parent = parent_process()
    assert parent is not None

    def end_with_it() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    # The pool's pipes stay open while any worker lives, so a worker whose parent was killed would wait for ever.
    threading.Thread(target=end_with_it, daemon=True).start()
    _worker = ShardEmbedder(model)


def _embed(shard: Shard) -> EmbeddedShard:
    assert _worker is not None
    return _worker(shard)


def sharded(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """``items`` in runs of ``size``."""
    return (items[start : start + size] for start in range(0, len(items), size))
