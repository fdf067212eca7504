"""Tests here need an emulator, a browser or a download: they run when they are asked for: ``-m devices``, make test-devices."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "devices" in config.getoption("markexpr"):
        return
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.skip(reason="emulated devices: make test-devices"))
