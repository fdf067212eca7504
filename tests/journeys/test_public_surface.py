"""The packages' shop windows: every public name exists, and what is promised not to load torch does not."""

import importlib
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

WINDOWS = (
    "samespace.sdk",
    "samespace.sdk.errors",
    "samespace.sdk.metrics",
    "samespace.sdk.check",
    "samespace.sdk.gallery",
    "samespace.edge.models",
    "samespace.edge.devices",
    "samespace.export",
    "samespace.cloud.data",
    "samespace.cloud.losses",
    "samespace.cloud.models",
    "samespace.cloud.training",
)


@pytest.mark.parametrize("name", WINDOWS)
def test_every_public_name_exists_once(name: str) -> None:
    module = importlib.import_module(name)
    assert len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        assert getattr(module, public) is not None


def test_what_users_of_the_client_import() -> None:
    from samespace import sdk

    assert {"Bundle", "Embedder", "GalleryClient", "Preprocess", "measure", "Gate"} <= set(sdk.__all__)


@pytest.mark.parametrize("name", ["samespace.sdk", "samespace.edge.devices", "samespace.cloud.gallery.service"])
def test_torch_stays_out(name: str) -> None:
    script = f"import sys, {name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


@pytest.mark.parametrize("group", ["samespace.models", "samespace.commands", "samespace.devices"])
def test_every_entry_point_loads(group: str) -> None:
    found = entry_points(group=group)
    assert found
    for point in found:
        assert point.load() is not None
