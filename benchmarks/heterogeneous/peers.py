"""What a user would assemble from pytorch-metric-learning: its losses with the cloud model's embeddings as ``ref_emb``.

python peers.py FOLDER SIZE SEED    needs the cloud model's run in FOLDER; writes FOLDER/runs/peers-seedN
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
import torch.nn.functional as F
from plain import SCALE, Student, batches, channels_last, fit
from protocol import DIM, PIXELS, SIZES, jobs
from torch import Tensor, nn

from samespace.cloud.evaluation import embed, score
from samespace.cloud.recipe import load_recipe
from samespace.cloud.training.data import load_training_data
from samespace.cloud.training.seeds import seeded
from samespace.edge.models.registry import build_model
from samespace.export.run import read_run
from samespace.sdk.files import atomic_write

__all__ = ["PEERS", "peer_objectives"]

#: Ours is compared on this architecture.
ARCHITECTURE = "residual"
PEERS = ("contrastive", "nt-xent", "supcon", "multi-similarity")


def peer_objectives() -> dict[str, nn.Module]:
    """The library's losses at its own defaults; the contrastive one on cosines, as its documentation shows for unit vectors."""
    from pytorch_metric_learning import distances, losses

    return {
        "contrastive": losses.ContrastiveLoss(pos_margin=1, neg_margin=0, distance=distances.CosineSimilarity()),
        "nt-xent": losses.NTXentLoss(),
        "supcon": losses.SupConLoss(),
        "multi-similarity": losses.MultiSimilarityLoss(),
    }


def main(folder: Path, size: str, seed: int) -> None:
    """Train every peer, alone and beside a classifier of its own, and write what each query finds."""
    torch.set_num_threads(1)
    scale = SIZES[size]
    run = folder / "runs" / "cloud"
    data = load_training_data(load_recipe(run / "recipe.toml", "full"))
    cloud = read_run(run).cloud
    teacher_net = channels_last(cloud.build().eval().requires_grad_(False))
    recipe = next(job.recipe for job in jobs(size) if job.name == f"main-0-seed{seed}")
    assert recipe is not None
    model = recipe["models"][ARCHITECTURE]
    students = {}
    for name, metric in peer_objectives().items():
        for own in (False, True):
            # The same initial weights as ours, which depend on the seed and this name.
            with seeded(seed, "initialise", ARCHITECTURE):
                network = channels_last(build_model(model["family"], {**model["arguments"], "dim": DIM, "image_size": PIXELS}))
                head = nn.Parameter(torch.randn(len(data.classes), DIM) / DIM**0.5)
            full = f"{name}-ce" if own else name
            students[full] = Student(network, _objective(metric, head if own else None), [head] if own else [])
    pictures, labels = torch.from_numpy(data.pictures), torch.from_numpy(data.labels)
    stream = batches(pictures, labels, PIXELS, scale.batch, scale.steps, seed)
    fit(students, lambda views: F.normalize(teacher_net(views), dim=1), stream, scale.steps, 3e-3)

    items, split, preprocess = data.images.items, data.split, cloud.record.preprocess
    found: dict[str, np.ndarray] = {}
    sides = {"validation": (split.validation_query, split.validation_gallery), "test": (split.test_query, split.test_gallery)}
    for side, (query, gallery) in sides.items():
        answers = [items[index].label for index in query], [items[index].label for index in gallery]
        asked, searched = data.prepared(query, preprocess), data.prepared(gallery, preprocess)
        columns = embed(teacher_net, searched, preprocess)
        for name, student in students.items():
            rows = embed(student.network, asked, preprocess)
            found[f"{side}/{name}->cloud"] = score(rows, columns, *answers).recall1.astype(np.float32)
    target = folder / "runs" / f"peers-seed{seed}"
    atomic_write(target / "queries.safetensors", safetensors.numpy.save(found))
    atomic_write(target / "done.json", json.dumps({"seed": seed}))


def _objective(metric: nn.Module, head: nn.Parameter | None):
    def objective(embedding: Tensor, labels: Tensor, target: Tensor) -> Tensor:
        # Labels of their own: of one and the same tensor the library drops the pairs (i, i), here the most telling ones.
        loss = metric(embedding, labels, ref_emb=target, ref_labels=labels.clone())
        if head is None:
            return loss
        return loss + F.cross_entropy(SCALE * embedding @ F.normalize(head, dim=1).T, labels)

    return objective


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
