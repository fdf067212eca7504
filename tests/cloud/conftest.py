"""A small real set of pictures and a recipe that trains on it in seconds."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs
import pytest

# What the package registry serves is fetched and rendered once, not once a run.
_LASTING_CACHE = Path(os.environ.get("SAMESPACE_CACHE_DIR") or platformdirs.user_cache_dir("samespace"))
# Rendered and decoded pictures of tests are kept apart from the user's.
os.environ.setdefault("SAMESPACE_CACHE_DIR", tempfile.mkdtemp(prefix="samespace-test-cache-"))


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's handwritten digits as a folder of PNG files: 10 classes x 20 pictures of 16 x 16 pixels."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    root = tmp_path_factory.mktemp("digits")
    pictures, labels = load_digits(return_X_y=True)
    for label in range(10):
        (root / f"digit-{label}").mkdir()
        for number, row in enumerate(pictures[labels == label][:20]):
            pixels = 255 - np.clip(row.reshape(8, 8) * 16, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).resize((16, 16)).save(root / f"digit-{label}" / f"{number:03d}.png")
    return root


@pytest.fixture
def recipe_content(digits: Path) -> Callable[..., dict[str, Any]]:
    """A recipe's content over the digits: a cloud model, a compatible edge model and a control; keyword arguments go on top."""

    def make(**changes: Any) -> dict[str, Any]:
        def model(role: str, width: int, **more: Any) -> dict[str, Any]:
            arguments = {"width": width, "stages": 1, "pooling": "map"}
            return {"role": role, "family": "residual", "dim": 8, "preprocess": {"size": 16}, "arguments": arguments, **more}

        content = {
            "name": "digits",
            "steps": 12,
            "batch": 16,
            "checkpoint_every": 4,
            "log_every": 1,
            "device": "cpu",
            "data": {"kind": "folder", "root": str(digits), "source_size": 16},
            "models": {"cloud": model("cloud", 8), "phone": model("edge", 4), "control": model("edge", 4, compatible=False)},
        }
        return {**content, **changes}

    return make


@pytest.fixture(scope="session")
def lasting_cache() -> Path:
    """The user's own cache folder: for what has to be fetched."""
    return _LASTING_CACHE


@pytest.fixture(scope="session")
def emoji_ci(lasting_cache: Path) -> Any:
    """The emoji set at size ci, an ``ImageSet``; needs the package registry the first time."""
    from samespace.cloud.data import EmojiConfig, open_dataset

    return open_dataset(EmojiConfig(size="ci"), cache=lasting_cache, show=False)
