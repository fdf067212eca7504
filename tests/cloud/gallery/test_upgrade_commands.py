"""The commands of an upgrade against a running service, as its operator uses them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from samespace.cloud.gallery.remote_upgrade import register
from samespace.sdk.errors import SignatureError
from samespace.sdk.gallery import GalleryClient
from samespace.sdk.identity import digest
from samespace.sdk.signing import SigningKey


class Operator:
    """A service with the world's pictures, the report of its upgrade, and the commands."""

    def __init__(self, run, url: str, world, folder: Path) -> None:
        self.run, self.url, self.world = run, url, world
        self.report = folder / "upgrade.json"
        self.report.write_text(world.upgrade_report("successor").model_dump_json())
        self.key = folder / "signer.pem"
        world.signer.save(self.key)
        self.images = folder / "photos"
        shutil.copytree(world.images, self.images)

    def __call__(self, command: str, *arguments: object) -> str:
        """What the command printed."""
        ran = self.run("gallery", command, *arguments, "--gallery", self.url)
        assert ran.code == 0, ran.err
        return ran.out

    def refused(self, command: str, *arguments: object) -> str:
        """Why the command refused."""
        ran = self.run("gallery", command, *arguments, "--gallery", self.url)
        assert ran.code
        assert "Traceback" not in ran.err
        return ran.err

    def json(self, command: str, *arguments: object) -> dict:
        return json.loads(self(command, *arguments, "--json"))

    def register(self) -> dict:
        bundle = self.world.bundle("successor")
        return self.json("upgrade", "--bundle", bundle, "--report", self.report, "--signer", self.key)

    def backfill(self, *options: object) -> dict:
        return self.json("backfill", self.images, "--bundle", self.world.bundle("successor"), *options)


@pytest.fixture
def operator(serve, run, gallery_world, tmp_path: Path) -> Operator:
    served = serve("--memory", "--bundle", str(gallery_world.bundle("cloud")))
    made = Operator(run, served.url, gallery_world, tmp_path)
    made("add", made.images, "--bundle", gallery_world.bundle("cloud"), "--workers", "1")
    return made


def test_an_upgrade_from_its_report_to_its_end(operator: Operator) -> None:
    state = operator.register()
    assert (state["outcome"], state["items"], state["embedded"]) == ("pass", 40, 0)
    assert state["serving_model_id"] == state["old_model_id"]
    assert operator.json("promote")["serving_model_id"] == state["new_model_id"]
    with GalleryClient.open(operator.url, operator.world.bundle("successor")) as client:
        before = client.search(next(operator.images.rglob("*.png")), 3)
        assert len(before) == 3, "found at once, by what the old model embedded"
    assert operator.json("rollback")["serving_model_id"] == state["old_model_id"]
    operator("promote")
    assert "40 items are there by" in operator.refused("finish")
    assert operator.backfill("--limit", "15", "--batch", "4") == {"kept": 15, "changed": 0, "missing": {}}
    assert operator.json("upgrade")["embedded"] == 15
    assert operator.backfill("--order", "random", "--seed", "3")["kept"] == 25, "only what was left"
    assert operator.backfill()["kept"] == 0
    text = operator("upgrade")
    assert "40 (100.0 %) by the new model" in text
    assert "roll back" in text
    assert operator.json("finish")["left"] == 0
    assert "no upgrade" in operator.refused("upgrade")


def test_pictures_that_moved_are_found_and_lost_ones_are_named(operator: Operator) -> None:
    operator.register()
    first, second, third, *_ = sorted(operator.images.rglob("*.png"))
    first.rename(operator.images / "moved.png")
    second.unlink()
    third.write_bytes(third.read_bytes()[:100])
    told = operator.backfill()
    assert told["kept"] == 38
    assert len(told["missing"]) == 2
    assert all("no file below" in reason for reason in told["missing"].values())
    strict = operator.refused("backfill", operator.images, "--bundle", operator.world.bundle("successor"), "--strict")
    assert "2 of 2 items stay as the old model embedded them" in strict


def test_the_most_wanted_go_first(operator: Operator, tmp_path: Path) -> None:
    operator.register()
    ids = [digest(path.read_bytes()) for path in sorted(operator.images.rglob("*.png"))]
    traffic = tmp_path / "traffic.csv"
    traffic.write_text("item_id,queries\n" + "".join(f"{item_id},{n}\n" for n, item_id in enumerate(ids, 1)))
    operator.backfill("--order", "traffic", "--traffic", traffic, "--limit", "10")
    operator("promote")
    with GalleryClient.open(operator.url, operator.world.bundle("successor")) as client:
        by_new = {item_id for item_id in ids if client.get(item_id).model_id == client.embedder.model_id}
    assert by_new == set(ids[-10:])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("upgrade", "--bundle", "x"), "by both: --bundle FILE and --report FILE"),
        (("upgrade", "--bundle", "x", "--report", "absent.json"), "cannot be read"),
        (("promote",), "no upgrade of the space"),
        (("promote", "--space", "s-none"), "s-none"),
        (("backfill", "absent", "--bundle", "x"), "no such folder"),
        (("backfill", ".", "--bundle", "x", "--order", "newest"), "is none of uncertainty, traffic, random, oldest"),
    ],
)
def test_what_cannot_be_done_is_said_with_the_mend(operator: Operator, arguments: tuple[str, ...], said: str) -> None:
    assert said in operator.refused(*arguments)


def test_the_report_is_believed_only_from_who_is_trusted(operator: Operator) -> None:
    with (
        GalleryClient.open(operator.url, operator.world.bundle("successor")) as client,
        pytest.raises(SignatureError, match="does not trust"),
    ):
        register(client, operator.report.read_bytes(), SigningKey.new())
