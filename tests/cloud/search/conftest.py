"""A finished tiny run over the digits, and searches in its space that take seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from samespace.cloud.recipe.load import parse_recipe
from samespace.cloud.search import Search, load_search
from samespace.cloud.toml import merged, to_toml
from samespace.cloud.training import train

#: 2 x 2 x 2 x (2 x 20) x (2 x 20) choices or so, of 8 x 8 pictures.
SPACE = {
    "image_size": 8,
    "stem_strides": [1],
    "stem_widths": [4, 8],
    "activations": ["relu", "hardswish"],
    "operators": ["inverted", "basic", "mixer"],
    "kernels": [3],
    "expansions": [1, 2],
    "widths": [[4, 8], [8, 12]],
    "depths": [1, 2],
}
CONTENT: dict[str, Any] = {
    "device": "cpu",
    "workers": 1,
    "space": SPACE,
    "supernet": {"steps": 6, "batch": 16, "checkpoint_every": 3},
    "budget": {"macs": 60_000},
    "proxy": {"pool": 8, "pictures": 24},
    "evaluation": {"bn_batches": 1, "bn_batch": 32},
    "evolution": {"population": 4, "generations": 2, "parents": 2},
    "finalists": {"steps": 3, "batch": 16, "seeds": []},
}


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("SAMESPACE_SIZE", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def partner(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a cloud model alone."""
    folder = tmp_path_factory.mktemp("partner")
    arguments = {"width": 8, "stages": 1, "pooling": "map"}
    content = {
        "name": "digits",
        "mode": "sequential",
        "steps": 20,
        "batch": 16,
        "device": "cpu",
        "data": {"kind": "folder", "root": str(digits), "source_size": 16, "validation_percent": 30},
        "models": {
            "cloud": {"role": "cloud", "family": "residual", "dim": 8, "preprocess": {"size": 16}, "arguments": arguments}
        },
    }
    train(parse_recipe(content, folder / "recipe.toml"), folder / "run")
    return folder / "run"


@pytest.fixture
def write(partner: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a search file; keyword arguments are merged over the tiny default."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "search.toml"
        path.write_text(to_toml(merged({"run": str(partner), **CONTENT}, changes)))
        return path

    return write


@pytest.fixture
def make(write: Callable[..., Path]) -> Callable[..., Search]:
    """The same, read."""
    return lambda **changes: load_search(write(**changes))
