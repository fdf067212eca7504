"""An upgrade in the gallery itself: mixed searches, the gate, promotion, rollback, the end; with every kind of store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace

import numpy as np
import pytest

from samespace.cloud.gallery.gallery import Gallery
from samespace.cloud.gallery.indexes.memory import MemoryIndex
from samespace.cloud.gallery.membership import Claim
from samespace.cloud.gallery.registries.memory import MemoryRegistry
from samespace.cloud.gallery.upgrading import record_of
from samespace.cloud.upgrades import Bars
from samespace.sdk.errors import ConfigError, SpaceMismatchError
from samespace.sdk.gallery.wire import UnknownModelError
from samespace.sdk.gallery.wire_admin import UpgradeRefusedError
from samespace.sdk.identity import digest
from samespace.sdk.metrics import ScoreMap

COUNT = 24


class Upgraded:
    """A gallery with ``COUNT`` items by the old model, and claims of all models."""

    def __init__(self, gallery: Gallery, world, new: str = "successor", **options: int) -> None:
        self.gallery, self.world, self.new = gallery, world, new
        self.images = {f"{number:03d}": world.picture() for number in range(COUNT)}
        self.old_claim = world.admitted(gallery, "cloud")
        self.add(self.old_claim, "cloud", sorted(self.images))
        self.space_id = self.old_claim.space_id
        self.successor = world.registered(gallery, new, **options)
        self.new_claim = world.admitted(gallery, new)

    def add(self, claim: Claim, name: str, ids: Sequence[str]) -> None:
        rows = self.world.embed(name, [self.images[item_id] for item_id in ids])
        self.gallery.add(claim, claim.space_id, claim.model_id, ids, rows, [{"n": int(item_id)} for item_id in ids])

    def backfill(self, ids: Sequence[str], name: str | None = None, seen: Sequence[str] | None = None) -> tuple[str, ...]:
        """By the new model, or by another one, what the other of the two made."""
        name = name or self.new
        claim = self.new_claim if name == self.new else self.old_claim
        other = "cloud" if name == self.new else self.new
        images = [self.images[item_id] for item_id in ids]
        seen = seen or [digest(row.tobytes()) for row in self.world.embed(other, images)]
        return self.gallery.backfill(claim, ids, self.world.embed(name, images), seen)

    def search(self, claim: Claim, name: str, image: bytes, k: int = COUNT, **options) -> list[tuple[str, float]]:
        query = self.world.embed(name, [image])
        _, (hits,) = self.gallery.search(claim, claim.space_id, claim.model_id, query, k, exact=True, **options)
        return [(hit.item_id, hit.score) for hit in hits]

    def expected(self, name: str, image: bytes, made: dict[str, str], maps: dict[str, ScoreMap]) -> list[tuple[str, float]]:
        """Brute force: each item by the model that ``made`` names, its score put on one scale by that model's map."""
        query = self.world.embed(name, [image])[0].astype(np.float64)
        scores = {
            item_id: maps[model](float(self.world.embed(model, [self.images[item_id]])[0] @ query))
            for item_id, model in made.items()
        }
        return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))


@pytest.fixture
def upgraded(founded_gallery, gallery_world) -> Upgraded:
    return Upgraded(founded_gallery, gallery_world)


@pytest.fixture
def in_memory(gallery_world) -> Gallery:
    return gallery_world.founded(Gallery(MemoryRegistry(), MemoryIndex()))


def assert_same(found: list[tuple[str, float]], expected: list[tuple[str, float]]) -> None:
    assert [item_id for item_id, _ in found] == [item_id for item_id, _ in expected]
    np.testing.assert_allclose([score for _, score in found], [score for _, score in expected], atol=2e-6)


def test_each_item_is_found_once_by_the_embedding_that_fits_the_query_best(upgraded: Upgraded) -> None:
    anew = ["003", "007", "011", "020"]
    assert upgraded.backfill(anew) == tuple(anew)
    merge, plain = upgraded.successor.merge, ScoreMap()
    assert merge["new"] != plain != merge["old"], "the test must be able to see a merge without calibration"
    query = upgraded.world.picture()
    by_old = {**dict.fromkeys(upgraded.images, "cloud")}
    by_new = by_old | dict.fromkeys(anew, "successor")
    for claim, name, made, maps in (
        # The new model searches its own embeddings first, the old one its own: it has them all.
        (upgraded.new_claim, "successor", by_new, {"successor": plain, "cloud": merge["new"]}),
        (upgraded.old_claim, "cloud", by_old, {"cloud": plain, "successor": merge["old"]}),
        (upgraded.world.admitted(upgraded.gallery, "phone"), "phone", by_old, {"cloud": plain}),
    ):
        assert_same(upgraded.search(claim, name, query), upgraded.expected(name, query, made, maps))
        assert_same(upgraded.search(claim, name, query, 3), upgraded.expected(name, query, made, maps)[:3])


def test_after_the_promotion_old_devices_find_what_the_new_model_adds(upgraded: Upgraded) -> None:
    upgraded.gallery.upgrades.promote(upgraded.space_id)
    upgraded.images["900"] = upgraded.world.picture()
    upgraded.add(upgraded.new_claim, "successor", ["900"])
    # An item that is replaced: what the old model made of the picture before must not be found any more.
    upgraded.images["004"] = upgraded.world.picture()
    upgraded.add(upgraded.new_claim, "successor", ["004"])
    made = {item_id: "successor" if item_id in ("004", "900") else "cloud" for item_id in upgraded.images}
    for claim, name, maps in (
        (upgraded.old_claim, "cloud", {"cloud": ScoreMap(), "successor": upgraded.successor.merge["old"]}),
        (upgraded.new_claim, "successor", {"successor": ScoreMap(), "cloud": upgraded.successor.merge["new"]}),
    ):
        for image in (upgraded.images["900"], upgraded.images["004"]):
            found = upgraded.search(claim, name, image, 100)
            assert_same(found, upgraded.expected(name, image, made, maps))
            assert found[0][0] == ("900" if image == upgraded.images["900"] else "004")
    assert upgraded.gallery.spaces()[0].items == COUNT + 1
    with pytest.raises(SpaceMismatchError, match="may search it, not fill it"):
        upgraded.add(upgraded.old_claim, "cloud", ["900"])
    assert upgraded.gallery.delete(upgraded.new_claim, ["000", "900", "absent"]) == 2
    assert upgraded.gallery.known(upgraded.old_claim, ["000", "001", "900"]) == {"001"}


def test_an_item_that_changes_its_layer_during_a_search_is_found_once(upgraded: Upgraded, monkeypatch) -> None:
    index, query = upgraded.gallery._index, upgraded.images["001"]
    upgraded.gallery.upgrades.promote(upgraded.space_id)
    search, moves = type(index).search, iter((["000"], ["001"]))
    with ThreadPoolExecutor(1) as elsewhere:
        moved = []

        def late(self, partition: str, *arguments, **options):
            found = search(self, partition, *arguments, **options)
            if options.get("without") is None and (ids := next(moves, None)):
                moved.append(elsewhere.submit(upgraded.backfill, ids))
                # In memory a writer waits until the search is over.
                wait(moved, timeout=0 if isinstance(index, MemoryIndex) else None)
            return found

        monkeypatch.setattr(type(index), "search", late)
        for _ in range(2):
            ids = [item_id for item_id, _ in upgraded.search(upgraded.new_claim, "successor", query)]
            assert sorted(ids) == sorted(upgraded.images)
        assert [one.result() for one in moved] == [("000",), ("001",)]


def test_pages_of_a_mixed_gallery_are_its_ranking(upgraded: Upgraded) -> None:
    upgraded.backfill([f"{number:03d}" for number in range(0, COUNT, 3)])
    query = upgraded.world.picture()
    whole = upgraded.search(upgraded.new_claim, "successor", query)
    turned: list[tuple[str, float]] = []
    while page := upgraded.search(
        upgraded.new_claim, "successor", query, 5, after=(turned[-1][1], turned[-1][0]) if turned else None
    ):
        turned += page
    assert turned == whole
    odd = [pair for pair in whole if int(pair[0]) in (1, 3, 4)]
    assert upgraded.search(upgraded.new_claim, "successor", query, where={"n": [1, 3, 4]}) == odd


def test_nothing_goes_live_without_a_pass(in_memory: Gallery, gallery_world) -> None:
    bad = Upgraded(in_memory, gallery_world, "stranger")
    assert bad.successor.outcome == "fail"
    with pytest.raises(UpgradeRefusedError, match=r"must not go live: fail: .*--force REASON"):
        in_memory.upgrades.promote(bad.space_id)
    with pytest.raises(UpgradeRefusedError, match="must not go live"):
        in_memory.upgrades.promote(bad.space_id, force="  ")
    assert in_memory.members.serving(bad.space_id) == bad.old_claim.model_id
    assert bad.search(bad.new_claim, "stranger", bad.images["000"]) == [], "no record lets it search what the old model made"
    forced = in_memory.upgrades.promote(bad.space_id, "anna", "the old model is recalled")
    assert [(event.action, event.by, event.force) for event in forced.events][1:] == [
        ("promote", "anna", "the old model is recalled")
    ]
    # Who forces it answers for it: an empty gallery would help nobody.
    assert len(bad.search(bad.new_claim, "stranger", bad.images["000"])) == COUNT
    assert len(bad.search(bad.old_claim, "cloud", bad.images["000"])) == COUNT
    in_memory.upgrades.roll_back(bad.space_id)
    assert bad.search(bad.new_claim, "stranger", bad.images["000"]) == []


def test_what_too_few_queries_cannot_tell_is_refused_with_the_number_that_would(in_memory: Gallery, gallery_world) -> None:
    unsure = Upgraded(in_memory, gallery_world, classes=6, noise=60)
    assert unsure.successor.outcome == "inconclusive"
    with pytest.raises(UpgradeRefusedError, match=r"inconclusive: .*\d+ queries"):
        in_memory.upgrades.promote(unsure.space_id)


def test_promotion_and_rollback_are_at_once_and_may_be_said_twice(upgraded: Upgraded) -> None:
    upgrades, place = upgraded.gallery.upgrades, upgraded.space_id
    before = upgraded.search(upgraded.old_claim, "cloud", upgraded.images["005"])
    for _ in range(2):
        upgrades.promote(place)
        assert upgraded.gallery.members.serving(place) == upgraded.new_claim.model_id
    for _ in range(2):
        upgrades.roll_back(place)
        assert upgraded.gallery.members.serving(place) == upgraded.old_claim.model_id
    assert upgraded.search(upgraded.old_claim, "cloud", upgraded.images["005"]) == before
    assert [event.action for event in upgrades.promote(place).events] == ["register", "promote", "roll back", "promote"]
    # Devices shake hands as before, whoever serves.
    for name in ("cloud", "successor", "phone"):
        upgraded.world.admitted(upgraded.gallery, name)


def test_the_end_loses_nothing(upgraded: Upgraded) -> None:
    upgrades, place = upgraded.gallery.upgrades, upgraded.space_id
    upgrades.promote(place)
    upgraded.backfill(sorted(upgraded.images)[1:])
    with pytest.raises(UpgradeRefusedError, match=r"1 items are there by .* alone and would be lost"):
        upgrades.finish(place)
    state = upgrades.state(place)
    assert (state.items, state.embedded, state.only_new) == (COUNT, COUNT - 1, 0)
    upgraded.backfill(["000"])
    query = upgraded.world.picture()
    before = upgraded.search(upgraded.new_claim, "successor", query)
    assert upgrades.finish(place) == 0
    assert upgraded.search(upgraded.new_claim, "successor", query) == before
    assert upgraded.gallery.spaces()[0].items == COUNT
    with pytest.raises(UpgradeRefusedError, match="no upgrade"):
        upgrades.roll_back(place)
    # The next one begins where this one ended.
    assert upgraded.world.registered(upgraded.gallery, "cloud", "successor").old_model_id == upgraded.new_claim.model_id


def test_an_upgrade_that_was_rolled_back_can_be_given_up(upgraded: Upgraded) -> None:
    upgrades, place = upgraded.gallery.upgrades, upgraded.space_id
    upgrades.promote(place)
    upgraded.images["900"] = upgraded.world.picture()
    upgraded.add(upgraded.new_claim, "successor", ["900"])
    upgrades.roll_back(place)
    with pytest.raises(UpgradeRefusedError, match="1 items"):
        upgrades.finish(place)
    assert upgraded.backfill(["900"], "cloud") == ("900",)
    assert upgrades.finish(place) == 0
    assert len(upgraded.search(upgraded.old_claim, "cloud", upgraded.images["900"], 100)) == COUNT + 1


def test_a_large_gallery_is_forgotten_in_parts(upgraded: Upgraded, monkeypatch) -> None:
    monkeypatch.setattr("samespace.cloud.gallery.upgrading._AT_ONCE", 10)
    upgraded.gallery.upgrades.promote(upgraded.space_id)
    upgraded.backfill(sorted(upgraded.images))
    assert [upgraded.gallery.upgrades.finish(upgraded.space_id) for _ in range(3)] == [14, 4, 0]


def test_a_picture_that_was_changed_meanwhile_is_not_overwritten(upgraded: Upgraded) -> None:
    stale = [
        digest(row.tobytes()) for row in upgraded.world.embed("cloud", [upgraded.images[i] for i in ("001", "002", "003")])
    ]
    upgraded.images["001"] = upgraded.world.picture()
    upgraded.add(upgraded.old_claim, "cloud", ["001"])
    upgraded.gallery.delete(upgraded.old_claim, ["002"])
    assert upgraded.backfill(["001", "002", "003"], seen=stale) == ("003",)
    assert upgraded.backfill(["003"]) == (), "said twice, kept once"
    _, left, _ = upgraded.gallery.left(upgraded.new_claim, "", 100)
    assert {item.item_id for item in left} == set(upgraded.images) - {"002", "003"}


def test_what_is_left_comes_by_id_or_by_age(upgraded: Upgraded) -> None:
    upgraded.add(upgraded.old_claim, "cloud", ["002"])  # the youngest now
    upgraded.backfill(["000", "013"])
    for oldest, expected in (
        (False, sorted(set(upgraded.images) - {"000", "013"})),
        (True, [*sorted(set(upgraded.images) - {"000", "002", "013"}), "002"]),
    ):
        found, after = [], ""
        while after is not None:
            model_id, items, after = upgraded.gallery.left(upgraded.new_claim, after, 7, oldest=oldest)
            found += [item.item_id for item in items]
            assert model_id == upgraded.old_claim.model_id
        assert found == expected
    with pytest.raises(ConfigError, match="no place among items by age"):
        upgraded.gallery.left(upgraded.new_claim, "abc", 7, oldest=True)


def test_only_the_two_models_of_the_upgrade_backfill(upgraded: Upgraded) -> None:
    phone = upgraded.world.admitted(upgraded.gallery, "phone")
    with pytest.raises(UpgradeRefusedError, match="is neither"):
        upgraded.gallery.left(phone, "", 1)
    unverified = replace(upgraded.new_claim, verified=False)
    with pytest.raises(Exception, match="did not pass its handshake"):
        upgraded.gallery.backfill(unverified, ["000"], upgraded.world.embed("successor", [upgraded.images["000"]]), ["x"])


def test_copies_for_devices_wait_until_the_gallery_is_whole(upgraded: Upgraded) -> None:
    assert upgraded.gallery.replicated(upgraded.old_claim)[0] == upgraded.old_claim.model_id
    upgraded.gallery.upgrades.promote(upgraded.space_id)
    with pytest.raises(UpgradeRefusedError, match="until the backfill is complete"):
        upgraded.gallery.replicated(upgraded.new_claim)
    upgraded.backfill(sorted(upgraded.images))
    upgraded.gallery.left_over.forget()
    assert upgraded.gallery.replicated(upgraded.new_claim)[0] == upgraded.new_claim.model_id


def test_tenants_are_upgraded_together(upgraded: Upgraded) -> None:
    acme = replace(upgraded.old_claim, tenant="acme")
    upgraded.add(acme, "cloud", ["001", "002"])
    upgraded.gallery.upgrades.promote(upgraded.space_id)
    upgraded.backfill(sorted(upgraded.images))
    with pytest.raises(UpgradeRefusedError, match="2 items"):
        upgraded.gallery.upgrades.finish(upgraded.space_id, ["acme"])
    assert len(upgraded.search(replace(upgraded.new_claim, tenant="acme"), "successor", upgraded.images["001"])) == 2


class TestRegistration:
    """What is refused, with the mend."""

    @pytest.fixture
    def parts(self, in_memory: Gallery, gallery_world):
        """``register(report=, record=, vectors=)``, with good ones for what is not given."""
        gallery_world.admitted(in_memory, "cloud")
        images = [c.image for c in in_memory.registry.challenges(gallery_world.records["cloud"].model_id)]

        def register(new: str = "successor", old: str = "cloud", introduced: bool = True, **given):
            if introduced:
                in_memory.members.introduce(gallery_world.evidence(new))
            report = given.get("report") or gallery_world.upgrade_report(new, old).model_dump_json().encode()
            record = given.get("record") or record_of(report, gallery_world.space)
            return in_memory.upgrades.register(report, record, None, given.get("vectors", gallery_world.embed(new, images)))

        return register

    def test_a_record_that_says_better_than_its_report(self, parts, gallery_world) -> None:
        report = gallery_world.upgrade_report("stranger").model_dump_json().encode()
        good = record_of(report, gallery_world.space).model_copy(update={"verdict": "pass"})
        with pytest.raises(ConfigError, match="does not follow from the upgrade report"):
            parts("stranger", report=report, record=good)

    def test_a_report_that_was_changed_after_it_was_signed(self, parts, gallery_world) -> None:
        report = gallery_world.upgrade_report("successor").model_dump_json().encode()
        record = record_of(report, gallery_world.space)
        changed = json.loads(report)
        changed["reproduce"] = "other"
        with pytest.raises(ConfigError, match="does not follow"):
            parts(report=json.dumps(changed).encode(), record=record)

    def test_bars_are_those_of_the_signed_record(self, parts, gallery_world) -> None:
        report = gallery_world.upgrade_report("stranger").model_dump_json().encode()
        lenient = Bars(margin=1, flips=10, slice_drop=1)
        assert parts("stranger", report=report, record=record_of(report, gallery_world.space, lenient)).outcome == "pass"

    def test_no_report(self, parts) -> None:
        with pytest.raises(ConfigError, match="is no upgrade report"):
            parts(report=b"{}")

    def test_a_model_that_was_not_introduced(self, parts) -> None:
        with pytest.raises(UnknownModelError, match="introduce it with its bundle"):
            parts(introduced=False)

    def test_another_old_model_than_the_one_that_serves(self, parts) -> None:
        with pytest.raises(UpgradeRefusedError, match="measure the upgrade from that one"):
            parts("successor", "phone")

    def test_two_upgrades_at_once(self, parts) -> None:
        parts()
        assert parts().new_model_id, "said again, with a newer report maybe"
        with pytest.raises(UpgradeRefusedError, match="is under way; finish it first"):
            parts("stranger")

    def test_not_one_embedding_of_each_challenge(self, parts, gallery_world) -> None:
        with pytest.raises(ConfigError, match="48 challenge pictures, 3 embeddings"):
            parts(vectors=gallery_world.embed("successor", gallery_world.probes[:3]))

    def test_the_alias_itself_is_not_moved_meanwhile(self, parts, in_memory: Gallery, gallery_world) -> None:
        successor = parts()
        with pytest.raises(UpgradeRefusedError, match="promote"):
            in_memory.set_alias(gallery_world.space.space_id, "serving", successor.new_model_id)
