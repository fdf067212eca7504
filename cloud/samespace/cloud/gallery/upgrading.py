"""Letting a successor take over a space that is in use: registered, promoted, rolled back, finished.

Each step is one transaction of the store. Until the last one both models' vectors stay, so going back is as quick as going on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from samespace.cloud.gallery.browsing import Browsing
from samespace.cloud.gallery.indexes.base import VectorIndex
from samespace.cloud.gallery.journal import Journal
from samespace.cloud.gallery.layers import Layer
from samespace.cloud.gallery.registry import SERVING, Challenge, RegisteredRecord, Registry
from samespace.cloud.gallery.successor import Successor
from samespace.cloud.gallery.vectors import checked_vectors
from samespace.cloud.upgrades import Bars, UpgradeReport, judge, judge_old_queries, read_report
from samespace.sdk.errors import ConfigError, SpaceMismatchError
from samespace.sdk.gallery.wire import UnknownModelError
from samespace.sdk.gallery.wire_admin import UpgradeRefusedError
from samespace.sdk.gallery.wire_upgrade import UpgradeState
from samespace.sdk.identity import CompatibilityRecord, SpaceRecord, digest

__all__ = ["Upgrading", "record_of"]

#: Items that :meth:`Upgrading.finish` forgets in one transaction.
_AT_ONCE = 2000


def record_of(report: bytes, space: SpaceRecord, bars: Bars | None = None) -> CompatibilityRecord:
    """What an upgrade report proves: whether new queries may search the old gallery.

    Args:
        report: JSON of the report; the record names its digest.
        bars: what it is judged by; the record says these, so that everybody can judge again.

    Raises:
        ConfigError: no upgrade report.
    """
    read, bars = read_report(report), bars or Bars()
    verdict = judge(read, bars)
    facts = {
        "upgrade_report": digest(report),
        "bars": bars.model_dump(mode="json"),
        "difference": verdict.difference.value,
        "difference_low": verdict.difference.low,
        "difference_high": verdict.difference.high,
        "flips": verdict.flips.rate.value,
        "n": verdict.difference.n,
    }
    return CompatibilityRecord(
        query_id=read.new.model_id,
        gallery_model_id=read.old.model_id,
        space_id=space.space_id,
        verdict=verdict.outcome,
        report=facts,
    )


class Upgrading:
    """Upgrades of a gallery's spaces, one at a time for each.

    Args:
        items: of the gallery, by tenant.
        registry: models, records, aliases, challenges.
        index: the vectors.
        journal: what is done inside :meth:`Journal.atomic` is one transaction.
    """

    def __init__(self, items: Browsing, registry: Registry, index: VectorIndex, journal: Journal) -> None:
        self._items, self._members = items, items.members
        self._registry, self._index, self._journal = registry, index, journal

    def register(
        self,
        report: bytes,
        record: CompatibilityRecord,
        signer: str | None,
        vectors: npt.NDArray[np.floating],
        by: str = "",
    ) -> Successor:
        """Let a member of a space be the serving model's successor; its queries may search at once where the record says so.

        What old devices may search is said by the same report. Models that are compatible with the old one alone (edge models)
        find what it embedded; for the rest they need records of their own.

        Args:
            report: JSON of the upgrade report that the record is about.
            signer: id of the key that vouches for the record.
            vectors: ``(n, d)`` the successor's embeddings of the space's challenge pictures.
            by: id of the operator's API key.

        Raises:
            ConfigError: a record that does not follow from the report.
            UnknownModelError: the successor was not introduced.
            UpgradeRefusedError: the report is of another serving model, or another upgrade is under way.
        """
        members, registry = self._members, self._registry
        space, read = members.space(record.space_id), read_report(report)
        bars = Bars.of(**_table(record, "bars"))
        judged = record_of(report, space, bars)
        if judged.model_copy(update={"measured_at": record.measured_at}) != record:
            raise ConfigError(
                "the compatibility record does not follow from the upgrade report; sign what record_of() makes of it"
            )
        verdict, old, new = judge(read, bars), read.old.model_id, read.new.model_id
        if not any(model.model_id == new for model in registry.models(space.space_id)):
            raise UnknownModelError(f"the model {new} is no member of the space {space.space_id}; introduce it with its bundle")
        rows = checked_vectors(vectors, space.dim, space.space_id, lambda row: f"challenge {row}")
        self._index.prepare(new, space.dim)
        with self._changing(space.space_id):
            there, serving = members.successor(space.space_id, now=True), members.serving(space.space_id, now=True)
            if there is not None and there.models != (old, new):
                raise UpgradeRefusedError(
                    f"the upgrade from {there.old_model_id} to {there.new_model_id} is under way; finish it first"
                )
            if there is None and serving != old:
                raise UpgradeRefusedError(
                    f"the report is about an upgrade from {old}, but {serving} serves; measure the upgrade from that one"
                )
            challenges = registry.challenges(old)
            if len(rows) != len(challenges):
                raise ConfigError(f"{len(challenges)} challenge pictures, {len(rows)} embeddings: one of each picture")
            made = (Challenge(c.name, c.image, row) for c, row in zip(challenges, rows, strict=True))
            registry.put_challenges(new, tuple(made))
            registry.put_record(RegisteredRecord(record=record, signer=signer))
            registry.put_record(RegisteredRecord(record=_of_old_queries(record, read, bars), signer=signer))
            successor = Successor(
                space_id=space.space_id,
                old_model_id=old,
                new_model_id=new,
                outcome=verdict.outcome,
                reasons=verdict.reasons,
                report_sha256=digest(report),
                signer=signer,
                merge=dict(read.merge),
                paused=there.paused if there else False,
                events=there.events if there else (),
            ).with_event("register", by)
            members.successors.put(successor)
        return successor

    def promote(self, space_id: str, by: str = "", force: str = "") -> Successor:
        """Let the new model serve: from now on it fills the gallery, and searches begin with its vectors.

        Args:
            force: why, although the verdict does not allow it; recorded.

        Raises:
            UpgradeRefusedError: the verdict is not "pass", and there is no reason to force it.
        """
        with self._changing(space_id):
            successor = self._of(space_id)
            if self._serving(space_id) == successor.new_model_id:
                return successor
            if successor.outcome != "pass" and not force.strip():
                raise UpgradeRefusedError(
                    f"the upgrade must not go live: {successor.outcome}: {'; '.join(successor.reasons)}. --force REASON "
                    "promotes it anyway, and is recorded"
                )
            return self._switch(successor.with_event("promote", by, force.strip()), successor.new_model_id)

    def roll_back(self, space_id: str, by: str = "") -> Successor:
        """Let the old model serve again; the new model's vectors stay, for another try.

        Raises:
            UpgradeRefusedError: no upgrade is under way.
        """
        with self._changing(space_id):
            successor = self._of(space_id)
            if self._serving(space_id) == successor.old_model_id:
                return successor
            return self._switch(successor.with_event("roll back", by), successor.old_model_id)

    def pause(self, space_id: str, paused: bool, by: str = "") -> Successor:
        """Let the backfill wait, or go on."""
        with self._changing(space_id):
            successor = self._of(space_id)
            if successor.paused != paused:
                successor = successor.with_event("pause" if paused else "resume", by, paused=paused)
                self._members.successors.put(successor)
        return successor

    def finish(self, space_id: str, tenants: Iterable[str] = ("",), by: str = "") -> int:
        """End the upgrade: forget the vectors of the model that does not serve, a part at each call.

        Args:
            tenants: all that have items.

        Returns:
            How many are left; at 0 the upgrade has ended.

        Raises:
            UpgradeRefusedError: items are there by that model alone.
        """
        with self._changing(space_id):
            successor, serving = self._of(space_id), self._serving(space_id)
            every = [self._items.layers(tenant, space_id, now=True).layers for tenant in sorted({"", *tenants})]
            # Nobody changes items while it is decided that none is lost.
            for layer in sorted((layer for layers in every for layer in layers), key=lambda layer: layer.partition):
                self._journal.hold(layer.partition)
            if alone := sum(self._index.count(last.partition, without=first.partition) for first, last in every):
                raise UpgradeRefusedError(
                    f"{alone} items are there by {successor.other(serving)} alone and would be lost; backfill them with the "
                    f"bundle of {serving} first"
                )
            room = _AT_ONCE
            for _, last in every:
                room -= self._shrink(last, room)
            left = sum(self._index.count(last.partition) for _, last in every)
            if not left:
                self._members.successors.end(successor.with_event("finish", by))
        return left

    def state(self, space_id: str, tenant: str = "") -> UpgradeState:
        """Where an upgrade stands.

        Raises:
            UpgradeRefusedError: none is under way.
        """
        successor = self._of(space_id)
        layers = self._items.layers(tenant, space_id, now=True)
        place = {layer.model_id: layer.partition for layer in layers.layers}
        old, new = place[successor.old_model_id], place[successor.new_model_id]
        embedded, left = self._index.count(new), self._items.left_over.count(old, new, now=True)
        only_new = self._items.left_over.count(new, old, now=True)
        return UpgradeState(
            space_id=space_id,
            old_model_id=successor.old_model_id,
            new_model_id=successor.new_model_id,
            serving_model_id=layers.models[0],
            outcome=successor.outcome,
            reasons=successor.reasons,
            paused=successor.paused,
            items=embedded + left,
            embedded=embedded,
            only_new=only_new,
            events=successor.events,
        )

    def _of(self, space_id: str) -> Successor:
        self._members.space(space_id)
        return self._members.upgrade(space_id)

    def _serving(self, space_id: str) -> str:
        return self._members.serving(space_id, now=True)

    def _switch(self, successor: Successor, model_id: str) -> Successor:
        self._registry.set_alias(successor.space_id, SERVING, model_id)
        self._members.successors.put(successor)
        return successor

    def _shrink(self, layer: Layer, most: int) -> int:
        """Forget up to so many items of a layer; within a transaction."""
        ids = [item.item_id for item in self._index.scan(layer.partition, "", most)] if most else []
        if ids:
            self._index.delete(layer.partition, ids)
            self._journal.write(layer.partition, ids, "delete")
        return len(ids)

    @contextmanager
    def _changing(self, space_id: str) -> Iterator[None]:
        """One transaction, of one at a time; after it this process believes no earlier answer."""
        try:
            with self._journal.atomic():
                self._journal.hold(space_id)
                yield
        finally:
            self._members.forget()
            self._items.left_over.forget()


def _of_old_queries(record: CompatibilityRecord, report: UpgradeReport, bars: Bars) -> CompatibilityRecord:
    """Whether devices that keep the old model may search what the new one embeds; from the same report."""
    finding = judge_old_queries(report, bars)
    facts = {"upgrade_report": record.report["upgrade_report"], "bars": record.report["bars"], "finding": finding.message}
    swapped = {"query_id": record.gallery_model_id, "gallery_model_id": record.query_id}
    return record.model_copy(update={**swapped, "verdict": finding.outcome, "report": facts})


def _table(record: CompatibilityRecord, name: str) -> dict[str, object]:
    table = record.report.get(name)
    if not isinstance(table, dict):
        raise SpaceMismatchError(f"the compatibility record has no {name!r}; make it with record_of()")
    return table
