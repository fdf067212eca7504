"""The upgrade of a running service's space, for who has an administrator's key."""

from __future__ import annotations

import json
from collections.abc import Iterator

from samespace.cloud.gallery.signatures import signed_record
from samespace.cloud.gallery.upgrading import record_of
from samespace.cloud.upgrades import Bars, read_report
from samespace.sdk.errors import ConfigError
from samespace.sdk.gallery.client import GalleryClient
from samespace.sdk.gallery.wire import API, Vectors
from samespace.sdk.gallery.wire_upgrade import (
    ChallengePictures,
    Decision,
    DecisionAction,
    Finishing,
    UpgradeRequest,
    UpgradeState,
)
from samespace.sdk.signing import SigningKey

__all__ = ["bars_of", "decide", "finish", "register", "state"]


def register(client: GalleryClient, report: bytes, signer: SigningKey | None, bars: Bars | None = None) -> UpgradeState:
    """Let the client's model be the successor of the one that serves its space.

    Args:
        client: with the new model's bundle.
        report: JSON of the upgrade report.
        signer: vouches for the compatibility record; None for a service that takes unsigned ones.
        bars: what the report is judged by; by default the ones that were saved with it.

    Raises:
        ConfigError: no upgrade report, or one about another model than the client's.
        SignatureError: the service does not trust the signer.
        UpgradeRefusedError: another model serves than the report's old one, or another upgrade is under way.
    """
    embedder, bundle = client.embedder, client.embedder.bundle
    if bundle is None:
        raise ConfigError("the successor is registered by its bundle; open the client with GalleryClient.open(url, bundle)")
    new = read_report(report).new
    if new.model_id != embedder.model_id:
        raise ConfigError(
            f"the report is about {new.name} ({new.model_id}), the bundle holds {embedder.model_id}; give its bundle"
        )
    record = record_of(report, bundle.manifest.space, bars or bars_of(report))
    client.introduce()
    place, call = f"{API}/spaces/{embedder.space_id}", client.session.connection.call
    pictures = client.run(call("GET", f"{place}/challenges", ChallengePictures))
    vectors = Vectors.of(embedder.embed(pictures.images))
    message = UpgradeRequest(report=report, record=signed_record(record, signer), vectors=vectors)
    return client.run(call("POST", f"{place}/upgrade", UpgradeState, message))


def bars_of(report: bytes) -> Bars:
    """The bars that ``samespace report --json`` saved with the report; the usual ones where there are none.

    Raises:
        ConfigError: unknown bars.
    """
    content = json.loads(report)
    bars = content.get("bars") if isinstance(content, dict) else None
    return Bars.of(**bars) if isinstance(bars, dict) else Bars()


def state(client: GalleryClient, space_id: str) -> UpgradeState:
    """Where the upgrade of a space stands.

    Raises:
        UpgradeRefusedError: none is under way.
    """
    return client.run(client.session.connection.call("GET", f"{API}/spaces/{space_id}/upgrade", UpgradeState))


def decide(client: GalleryClient, space_id: str, action: DecisionAction, force: str = "") -> UpgradeState:
    """Promote, roll back, pause or resume.

    Args:
        force: why it is promoted although the verdict does not allow it; recorded.

    Raises:
        UpgradeRefusedError: the verdict does not allow it, or no upgrade is under way.
    """
    message = Decision(action=action, force=force)
    return client.run(
        client.session.connection.call("POST", f"{API}/spaces/{space_id}/upgrade/decision", UpgradeState, message)
    )


def finish(client: GalleryClient, space_id: str) -> Iterator[int]:
    """End the upgrade: forget the vectors of the model that does not serve. Yields how many are left; it may be cut short.

    Raises:
        UpgradeRefusedError: items are there by that model alone.
    """
    left = 1
    while left:
        answer = client.run(client.session.connection.call("POST", f"{API}/spaces/{space_id}/upgrade/finish", Finishing))
        yield (left := answer.left)
