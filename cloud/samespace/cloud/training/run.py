"""A run's folder: what is where in it, and which recipe it belongs to.

recipe.toml          the recipe as it was trained, all defaults and the size filled in
log.jsonl            one line every few steps
state/               the checkpoint
heads/TIER.safetensors   class weights ("weight", (classes, dim)) of each tier's own softmax; classes.json names the rows
models/TIER.json, models/TIER.safetensors   ModelRecord and float weights
space.json           SpaceRecord
probes/              pictures of unseen classes and a sample of the cloud gallery, for bundles
calibration/         training pictures that quantisation is fitted to, and the cloud model's embeddings of them
quantisation.json    of models that learnt under fake quantisation: what int8 cost them before, and costs them now
queries.safetensors  what each query found, "SPLIT/QUERY->GALLERY" (n,): recall@1, and the same + "/ap": average precision
items.json           SPLIT -> "query" and "gallery" -> key, class, source and quality of each picture, in the order of the rows
embeddings/TIER.safetensors  of the test split: "query" (n, d) and "gallery" (m, d), unit rows
matrices.json        measured M(a, b); written last: a run that has it is complete
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from samespace.cloud.recipe import Recipe, load_recipe
from samespace.cloud.training.checkpoint import Progress, unpack
from samespace.cloud.training.checkpoint import write as write_checkpoint
from samespace.sdk.errors import ConfigError
from samespace.sdk.files import atomic_write

__all__ = ["RunDirectory"]


class RunDirectory:
    """Paths below a run's folder, and the rules for using it again."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.toml"
        self.log = self.path / "log.jsonl"
        self.checkpoint = self.path / "state" / "checkpoint.safetensors"
        self.models = self.path / "models"
        self.heads = self.path / "heads"
        self.space = self.path / "space.json"
        self.probes = self.path / "probes"
        self.calibration = self.path / "calibration"
        self.quantisation = self.path / "quantisation.json"
        self.queries = self.path / "queries.safetensors"
        self.items = self.path / "items.json"
        self.embeddings = self.path / "embeddings"
        self.matrices = self.path / "matrices.json"

    def check_folder(self, recipe: Recipe, *, resume: bool) -> None:
        """See that the folder may be this recipe's; changes nothing.

        Raises:
            ConfigError: it holds something that is no run, or a run of another recipe.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path}: is a file; a run needs a folder")
        if not self.recipe.exists():
            # Hidden files may be left of a run that was killed while it wrote its recipe.
            if self.path.exists() and any(not entry.name.startswith(".") for entry in self.path.iterdir()):
                raise ConfigError(f"{self.path}: is not empty and holds no run; choose another folder")
            return
        there = load_recipe(self.recipe, "full") if resume else recipe
        if there.digest != recipe.digest:
            keys = ", ".join(_differences(there.resolved(), recipe.resolved()))
            raise ConfigError(
                f"{self.path}: holds a run of another recipe, which differs in {keys}; train into another folder, "
                "or start over with --no-resume"
            )

    @contextmanager
    def opened(self, recipe: Recipe, *, resume: bool) -> Iterator[None]:
        """Make the folder this recipe's, or see that it is, and keep other processes out while the block runs.

        Args:
            recipe: what is to be trained.
            resume: False discards what an earlier run, of any recipe, left here.

        Raises:
            ConfigError: the folder holds something that is no run, a run of another recipe, or one that is being trained now.
        """
        self.check_folder(recipe, resume=resume)
        self.path.mkdir(parents=True, exist_ok=True)
        with self._locked():
            if not resume:
                self._clear()
            if not self.recipe.exists():
                atomic_write(self.recipe, recipe.to_toml())
            yield

    def load(self) -> bytes | None:
        """The checkpoint's bytes, if there is one."""
        return self.checkpoint.read_bytes() if self.checkpoint.exists() else None

    def save(self, data: bytes) -> None:
        """Replace the checkpoint."""
        write_checkpoint(self.checkpoint, data)

    def check(self, data: bytes, recipe: Recipe, data_sha256: str) -> Progress:
        """The checkpoint's progress, when it belongs to this recipe and these pictures.

        Raises:
            ConfigError: it does not, or cannot be read.
        """
        progress, _ = unpack(data, str(self.checkpoint))
        if progress.recipe_sha256 != recipe.digest:
            raise ConfigError(f"{self.checkpoint} belongs to another recipe; train into another folder, or pass --no-resume")
        if progress.data_sha256 != data_sha256:
            raise ConfigError(
                f"{self.path}: the training pictures are not those that the run was started with; train into another folder, "
                "or start over with --no-resume"
            )
        return progress

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # The system takes the lock back when the process dies, however it dies.
        with open(self.path / ".lock", "w") as handle:
            try:
                import fcntl  # POSIX only; elsewhere there is no lock

                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except ImportError:
                pass
            except OSError:
                raise ConfigError(
                    f"{self.path}: another process is training into this folder; wait for it, or stop it"
                ) from None
            yield

    def _clear(self) -> None:
        # The recipe goes last: as long as it stands, the folder is known to be a run's.
        for path in (
            self.matrices,
            self.queries,
            self.items,
            self.embeddings,
            self.space,
            self.checkpoint.parent,
            self.models,
            self.heads,
            self.probes,
            self.calibration,
            self.quantisation,
            self.log,
            self.recipe,
        ):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _differences(a: Any, b: Any, prefix: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [key for key in {**a, **b} if a.get(key) != b.get(key)]
        return [found for key in keys for found in _differences(a.get(key), b.get(key), f"{prefix}.{key}" if prefix else key)]
    return [prefix]
