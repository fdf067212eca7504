"""What a candidate is worth: its slice of the supernet, batch norm estimated anew, on pictures of validation classes."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import safetensors.torch
import torch
from torch import Tensor, nn

from samespace.cloud.data import augment_batch, resize_batch
from samespace.cloud.evaluation import embed
from samespace.cloud.inputs import normalised
from samespace.cloud.recipe import Recipe
from samespace.cloud.search.config import Search
from samespace.cloud.search.proxy import linear_cka
from samespace.cloud.training.data import TrainingData
from samespace.cloud.training.partners import Founder
from samespace.cloud.training.seeds import derive, generator
from samespace.edge.models.registry import build_model
from samespace.edge.search import Architecture, SearchSpace, Supernet
from samespace.sdk.files import atomic_write
from samespace.sdk.metrics import negative_flips, recall_at_k, relative_negative_flip_rate
from samespace.sdk.prefix import comparable
from samespace.sdk.preprocess import Preprocess

__all__ = ["Evaluator", "Pictures", "Worth", "collect_pictures", "load_supernet"]


@dataclass(frozen=True)
class Worth:
    """What an evaluation says; see :class:`samespace.cloud.search.memo.Candidate`."""

    m_qq: float
    m_qg: float
    negative_flips: float
    relative_negative_flips: float
    seconds: float


@dataclass(frozen=True, eq=False)
class Pictures:
    """All that candidates are judged on; the same for each. No picture of a test class is among them.

    Attributes:
        statistics: ``(b, n, s, s, 3)`` uint8, augmented training pictures for batch norm.
        proxy: ``(p, s, s, 3)`` uint8 training pictures.
        proxy_cloud: ``(p, d)`` float32, what the cloud model makes of them.
        query: ``(n, s, s, 3)`` uint8, of validation classes.
        gallery: ``(m, s, s, 3)`` uint8, of validation classes.
        query_labels: ``(n,)`` int64.
        gallery_labels: ``(m,)`` int64.
        gallery_cloud: ``(m, d)`` float32.
        cloud_hits: ``(n,)`` float64, where the cloud model as query encoder is right.
    """

    statistics: npt.NDArray[np.uint8]
    proxy: npt.NDArray[np.uint8]
    proxy_cloud: npt.NDArray[np.float32]
    query: npt.NDArray[np.uint8]
    gallery: npt.NDArray[np.uint8]
    query_labels: npt.NDArray[np.int64]
    gallery_labels: npt.NDArray[np.int64]
    gallery_cloud: npt.NDArray[np.float32]
    cloud_hits: npt.NDArray[np.float64]

    def save(self, path: Path) -> None:
        """Write one file, for the workers."""
        content = {field.name: np.ascontiguousarray(getattr(self, field.name)) for field in fields(self)}
        atomic_write(path, safetensors.numpy.save(content))

    @classmethod
    def load(cls, path: Path) -> Pictures:
        """What :meth:`save` wrote."""
        content = safetensors.numpy.load_file(path)
        return cls(**{field.name: content[field.name] for field in fields(cls)})


def collect_pictures(search: Search, recipe: Recipe, data: TrainingData, founder: Founder) -> Pictures:
    """Pictures at the space's size, and what the cloud model makes of them.

    Args:
        search: how many of which.
        recipe: the supernet's.
        data: of the same recipe.
        founder: the cloud model.
    """
    preprocess, cloud = recipe.models["supernet"].preprocess, recipe.models[recipe.cloud].preprocess
    network = founder.model.build()
    seed = search.supernet.seed
    rng = np.random.default_rng(derive(seed, "proxy"))
    chosen = rng.permutation(len(data.labels))[: search.proxy.pictures]
    train = [data.split.train[row] for row in chosen]
    query, gallery = data.split.validation_query, data.split.validation_gallery
    labels = {label: number for number, label in enumerate(sorted({data.images.items[index].label for index in gallery}))}
    query_labels, gallery_labels = (
        np.array([labels[data.images.items[index].label] for index in side], np.int64) for side in (query, gallery)
    )
    query_cloud, gallery_cloud, proxy_cloud = (
        embed(network, data.prepared(side, cloud), cloud) for side in (query, gallery, train)
    )
    return Pictures(
        statistics=np.stack([_augmented(search, recipe, data, number) for number in range(search.evaluation.bn_batches)]),
        proxy=data.prepared(train, preprocess),
        proxy_cloud=proxy_cloud,
        query=data.prepared(query, preprocess),
        gallery=data.prepared(gallery, preprocess),
        query_labels=query_labels,
        gallery_labels=gallery_labels,
        gallery_cloud=gallery_cloud,
        cloud_hits=recall_at_k(query_cloud, gallery_cloud, query_labels.tolist(), gallery_labels.tolist()),
    )


class Evaluator:
    """Judges architectures of a supernet.

    Args:
        supernet: trained; not changed.
        pictures: what they are judged on.
        preprocess: size, mean and std of the candidates.
        device: where.
    """

    def __init__(self, supernet: Supernet, pictures: Pictures, preprocess: Preprocess, device: torch.device) -> None:
        self.supernet = supernet.to(device).eval().requires_grad_(False)
        self.pictures, self.preprocess, self.device = pictures, preprocess, device
        self._query_labels = pictures.query_labels.tolist()
        self._gallery_labels = pictures.gallery_labels.tolist()

    def network(self, architecture: Architecture) -> nn.Module:
        """The candidate, its batch norm estimated on the fixed training batches, in evaluation mode."""
        network = self.supernet.extract(architecture)
        network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - missing in the stubs
        estimate_statistics(network, [self._input(batch) for batch in self.pictures.statistics])
        return network

    def evaluate(self, architecture: Architecture) -> Worth:
        """Its M(q,q), M(q,g) and negative flips, recall@1 on validation classes.

        Raises:
            EmbeddingError: its embeddings are NaN, infinite or zero.
        """
        began = time.perf_counter()
        network, pictures = self.network(architecture), self.pictures
        query = embed(network, pictures.query, self.preprocess)
        gallery = embed(network, pictures.gallery, self.preprocess)
        own = recall_at_k(query, gallery, self._query_labels, self._gallery_labels)
        cross = recall_at_k(*comparable(query, pictures.gallery_cloud), self._query_labels, self._gallery_labels)
        return Worth(
            m_qq=float(own.mean()),
            m_qg=float(cross.mean()),
            negative_flips=float(negative_flips(pictures.cloud_hits, cross).mean()),
            relative_negative_flips=relative_negative_flip_rate(pictures.cloud_hits, cross),
            seconds=round(time.perf_counter() - began, 4),
        )

    def proxy(self, architecture: Architecture) -> float:
        """Linear CKA with the cloud model on training pictures.

        Raises:
            EmbeddingError: its embeddings are NaN, infinite or all the same.
        """
        network = self.supernet.extract(architecture).train()
        with torch.no_grad():
            features = network(self._input(self.pictures.proxy)).float().cpu().numpy()
        return linear_cka(features, self.pictures.proxy_cloud)

    def _input(self, pictures: npt.NDArray[np.uint8]) -> Tensor:
        return normalised(torch.from_numpy(np.array(pictures)).to(self.device), self.preprocess)


def estimate_statistics(network: nn.Module, batches: list[Tensor]) -> None:
    """Replace batch-norm statistics by the mean over some batches of theirs; ends in evaluation mode."""
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    before = [layer.momentum for layer in norms]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean, not a moving one
    network.train()
    with torch.no_grad():
        for batch in batches:
            network(batch)
    for layer, momentum in zip(norms, before, strict=True):
        layer.momentum = momentum
    network.eval()


def load_supernet(weights: Path, space: SearchSpace) -> Supernet:
    """The trained supernet from its weights."""
    supernet = cast(Supernet, build_model("mobile_supernet", space.model_dump(mode="json"), weights_follow=True))
    supernet.load_state_dict(safetensors.torch.load_file(weights))
    return supernet


def _augmented(search: Search, recipe: Recipe, data: TrainingData, number: int) -> npt.NDArray[np.uint8]:
    """A training batch as the supernet saw them, ``(n, s, s, 3)``; the same for a number."""
    cpu = torch.device("cpu")
    seed, count = search.supernet.seed, min(search.evaluation.bn_batch, len(data.labels))
    rng = np.random.default_rng(derive(seed, "statistics", number))
    rows = torch.from_numpy(np.sort(rng.permutation(len(data.labels))[:count]))
    pictures, _ = data.batch(rows, cpu)
    augmented = augment_batch(pictures, generator(cpu, seed, "statistics", number), recipe.augment)
    return resize_batch(augmented, recipe.models["supernet"].preprocess.size).numpy()
