"""What all tests share: a configuration folder of their own, one thread each, no telemetry, and who runs beside whom."""

import os
import tempfile

import pytest

# Before any test imports a runtime or reads the user's keys: tests never touch the user's own configuration.
os.environ["SAMESPACE_CONFIG_DIR"] = tempfile.mkdtemp(prefix="samespace-test-config-")
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# Small models on shared cores: a second thread mostly waits for the first. Workers side by side use the cores better.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in this hook, too
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under xdist a file's tests stay together, and so do those that share something costly: a run of the demo, an export."""
    for item in items:
        shared = [name for name in ("demo", "exported") if name in getattr(item, "fixturenames", ())]
        item.add_marker(pytest.mark.xdist_group(shared[0] if shared else item.nodeid.partition("::")[0]))
