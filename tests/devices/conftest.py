"""Tests here need an emulator, a browser or a download: they run when they are asked for: ``-m devices``, make test-devices."""

from pathlib import Path

import pytest

from samespace.sdk import Bundle, TrustStore
from samespace.sdk.signing import PublicKey

from .guide import CORPUS

HERE = Path(__file__).parent


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A released bundle of the corpus."""
    trust = TrustStore(tmp_path / "trust")
    trust.add(PublicKey.load(CORPUS / "signer.pub.pem"), "corpus")
    return Bundle.open(next(CORPUS.glob("*.samespace")), trust=trust)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "devices" in config.getoption("markexpr"):
        return
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.skip(reason="emulated devices: make test-devices"))
