"""kill -9 of client, service and database at random moments of an upgrade under load, and what is left afterwards.

A loading process adds, deletes, backfills to both models, promotes and rolls back, one operation after the other, and tells
each acknowledgement at once; beside it others search with the old and with the new model. At a random moment one of the three
is killed; everything is started again, and both models' vectors are compared, item by item, with what was acknowledged: the old
or the new model serves, as was last acknowledged or asked for; nothing is lost, torn or mixed; the backfill goes on to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "gallery"))

import numpy as np
from kills import BATCH, DIM, TARGETS, Served, exported, loaded_until_killed, test_world, vector_of

from samespace.cloud.gallery.backfill import plan_backfill
from samespace.cloud.gallery.remote_upgrade import decide, register, state
from samespace.cloud.gallery.vectors import checked_vectors
from samespace.cloud.upgrades import read_report
from samespace.sdk.errors import GalleryUnavailableError, SamespaceError
from samespace.sdk.gallery import GalleryClient
from samespace.sdk.gallery.client import NewItem
from samespace.sdk.gallery.wire import API, Vectors
from samespace.sdk.gallery.wire_upgrade import BackfillBatch, Backfilled
from samespace.sdk.identity import digest
from samespace.sdk.metrics.calibration import ScoreMap

__all__ = ["Crashes", "Held", "crash", "toy_upgrade"]

MODELS = ("cloud", "successor")

#: What an operation changes: model -> item -> its version, None where the item is forgotten.
Change = dict[str, dict[str, int | None]]


@dataclass
class Held:
    """What the gallery must hold.

    Attributes:
        items: model -> item -> version, of what was acknowledged.
        maybe: the change that was under way.
        serving: the model that was last acknowledged.
        switching: the model that was asked for when it was cut off.
    """

    items: dict[str, dict[str, int]] = field(default_factory=lambda: {name: {} for name in MODELS})
    maybe: Change | None = None
    serving: str = "cloud"
    switching: str | None = None

    def take(self, told: dict) -> None:
        """Read what the loading process says: an operation begins, or was acknowledged."""
        begins = told["state"] == "begin"
        if "model" in told:
            self.switching, self.serving = (told["model"], self.serving) if begins else (None, told["model"])
        elif begins:
            self.maybe = told["change"]
        else:
            self.apply(told["change"])
            self.maybe = None

    def apply(self, change: Change) -> None:
        """What an operation did."""
        for model, versions in change.items():
            for item_id, version in versions.items():
                if version is None:
                    self.items[model].pop(item_id, None)
                else:
                    self.items[model][item_id] = version


@dataclass
class Crashes:
    """What was seen over all rounds; all but ``rounds``, ``checked`` and ``answers`` must be 0. ``said``: wrong answers."""

    rounds: Counter[str] = field(default_factory=Counter)
    checked: int = 0
    answers: int = 0
    lost: int = 0
    changed: int = 0
    revived: int = 0
    torn: int = 0
    undeclared: int = 0
    unfinished: int = 0
    said: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> dict[str, int]:
        """What must be 0."""
        return {name: getattr(self, name) for name in ("lost", "changed", "revived", "torn", "undeclared", "unfinished")}


class Actor:
    """The two models' clients, and the operator's operations."""

    def __init__(self, url: str, bundles: dict[str, str]) -> None:
        self.clients = {name: GalleryClient.open(url, path) for name, path in bundles.items()}
        self.names = {client.embedder.model_id: name for name, client in self.clients.items()}
        self.space_id = self.clients["cloud"].embedder.space_id

    def serving(self) -> str:
        """The name of the model that serves."""
        return self.names[state(self.clients["cloud"], self.space_id).serving_model_id]

    def switch(self, name: str) -> None:
        """Promote or roll back."""
        decide(self.clients["cloud"], self.space_id, "promote" if name == "successor" else "roll back")

    def backfill(self, name: str, ids: list[str], held: Held) -> tuple[str, ...]:
        """What was kept of items that the other model embedded."""
        source = held.items[_other(name)]
        message = BackfillBatch(
            ids=tuple(ids),
            vectors=Vectors.of(np.stack([vector_of(name, item_id, source[item_id]) for item_id in ids])),
            seen=tuple(_seen(_other(name), item_id, source[item_id]) for item_id in ids),
        )
        client = self.clients[name]
        return client.run(client.session.call("POST", f"{API}/backfill", Backfilled, message)).kept

    def close(self) -> None:
        for client in self.clients.values():
            client.close()


def load(url: str, bundles: dict[str, str], report: Path, held: Held, seed: int) -> None:
    """Work until killed; a line on stdout before and after each operation."""
    chance, actor = random.Random(seed), Actor(url, bundles)
    merge = read_report(report.read_bytes()).merge
    for name, side in (("cloud", "old"), ("successor", "new")):
        maps = {name: ScoreMap(), _other(name): merge[side]}
        threading.Thread(target=_search_on, args=(url, bundles[name], name, maps), daemon=True).start()
    for number in range(1_000_000):
        serving, other = held.serving, _other(held.serving)
        kind = chance.choices(("add", "replace", "delete", "backfill", "switch"), (4, 2, 2, 6, 3))[0]
        if kind == "switch":
            _told(held, {"model": other}, lambda to=other: actor.switch(to))
            continue
        if kind == "backfill":
            target = chance.choice(MODELS)
            left = sorted(held.items[_other(target)].keys() - held.items[target].keys())
            ids = chance.sample(left, min(BATCH, len(left)))
            if ids:
                change: Change = {target: {item_id: held.items[_other(target)][item_id] for item_id in ids}}
                _told(held, {"change": change}, lambda to=target, ids=ids: _all_kept(actor.backfill(to, ids, held), ids))
            continue
        known = sorted(held.items[serving].keys() | held.items[other].keys())
        if kind == "delete" and known:
            item_id = chance.choice(known)
            change = {name: {item_id: None} for name in MODELS if item_id in held.items[name]}
            _told(held, {"change": change}, lambda item_id=item_id, client=actor.clients[serving]: client.delete(item_id))
            continue
        ids = chance.sample(known, min(BATCH, len(known))) if kind == "replace" else []
        ids = ids or [f"{seed}-{number}-{place}" for place in range(BATCH)]
        version = {i: 1 + max(held.items[name].get(i, 0) for name in MODELS) for i in ids}
        change = {serving: dict(version), other: {i: None for i in ids if i in held.items[other]}}
        items = [NewItem(i, vector_of(serving, i, v), {"version": v}) for i, v in version.items()]
        _told(held, {"change": change}, lambda items=items, client=actor.clients[serving]: client.add(items))


def crash(folder: Path, world, rounds: int, seed: int) -> Crashes:
    """Kill ``rounds`` times, each target in turn, and look what is there each time.

    Args:
        folder: of the service's database.
        world: bundles and report, see :func:`toy_upgrade`.
    """
    chance, seen, held = random.Random(seed), Crashes(), Held()
    bundles = {name: str(world.bundle(name)) for name in MODELS}
    data, report = folder / "data", folder / "upgrade.json"
    folder.mkdir(parents=True, exist_ok=True)
    report.write_text(world.upgrade_report("successor").model_dump_json())
    served = Served(data, {"cloud": bundles["cloud"]})
    try:
        with GalleryClient.open(served.url, bundles["successor"]) as client:
            register(client, report.read_bytes(), world.signer)
        for number in range(rounds):
            target = TARGETS[number % len(TARGETS)]
            options = [served.url, json.dumps(bundles), str(report), str(seed + number)]
            state = {"items": held.items, "serving": held.serving}
            for line in loaded_until_killed(__file__, options, state, served, target, chance):
                _take(line, held, seen)
            seen.rounds[target] += 1
            if target != "client":
                served = Served(data, {"cloud": bundles["cloud"]})
            _look(served.url, bundles, held, seen)
        _finish(served.url, bundles, held, seen)
    finally:
        served.stop()
    return seen


def toy_upgrade(folder: Path):
    """The small models, their signer and their upgrade report that the tests use."""
    return test_world().GalleryWorld(folder)


def _told(held: Held, what: dict, work) -> None:
    for moment in ("begin", "done"):
        if moment == "done":
            work()
        held.take({"state": moment, **what})
        _say({"state": moment, **what})


def _say(what: dict) -> None:
    """A line at once and whole, whatever other threads say."""
    os.write(sys.stdout.fileno(), (json.dumps(what) + "\n").encode())


def _all_kept(kept: tuple[str, ...], ids: list[str]) -> None:
    if set(kept) != set(ids):
        _say({"answer": f"backfill kept {len(kept)} of {len(ids)}"})
        raise SystemExit(1)


def _search_on(url: str, bundle: str, name: str, maps: dict[str, ScoreMap]) -> None:
    """Search until killed; tell whether each answer is made of declared scores: by its own model, or by the other one's map."""
    client = GalleryClient.open(url, bundle)
    for number in range(1_000_000):
        query = vector_of(name, f"query-{number}", 0)
        try:
            hits = client.search(query, 20)
        except GalleryUnavailableError:
            return
        except SamespaceError as error:
            _say({"answer": str(error)})
            continue
        wrong = "" if len({hit.item_id for hit in hits}) == len(hits) else "twice"
        for hit in hits:
            version = int(hit.metadata["version"])
            declared = [float(maps[m](query @ vector_of(m, hit.item_id, version))) for m in MODELS]
            if not any(abs(score - hit.score) < 1e-4 for score in declared):
                wrong = f"{hit.score} is none of {declared}"
        _say({"answer": wrong})


def _take(line: str, held: Held, seen: Crashes) -> None:
    told = json.loads(line)
    if "answer" in told:
        seen.answers += 1
        if told["answer"]:
            seen.undeclared += 1
            seen.said.append(told["answer"])
    else:
        held.take(told)


def _look(url: str, bundles: dict[str, str], held: Held, seen: Crashes) -> None:
    """Compare the gallery with what it must hold, and go on from what it does hold."""
    actor = Actor(url, bundles)
    serving = actor.serving()
    seen.torn += serving not in (held.serving, held.switching or held.serving)
    found = {name: {} for name in MODELS}
    for name in MODELS:
        actor.switch(name)
        for item in exported(url, actor.clients[name].handshake().token):
            found[actor.names[item["model_id"]]][item["item_id"]] = item
    actor.switch(serving)
    actor.close()
    if held.maybe is not None:
        done = [
            (item_id in found[name] and found[name][item_id]["metadata"]["version"] == version)
            if version
            else item_id not in found[name]
            for name, versions in held.maybe.items()
            for item_id, version in versions.items()
        ]
        seen.torn += len(set(done)) > 1
        if all(done):
            held.apply(held.maybe)
    for name in MODELS:
        expected, there = held.items[name], found[name]
        seen.checked += len(expected)
        seen.lost += len(expected.keys() - there.keys())
        seen.revived += len(there.keys() - expected.keys())
        for item_id in expected.keys() & there.keys():
            row = Vectors.model_validate(there[item_id]["vector"]).array()[0]
            version = expected[item_id]
            same = there[item_id]["metadata"] == {"version": version}
            seen.changed += not (same and np.allclose(row, vector_of(name, item_id, version), atol=1e-6))
    held.serving, held.switching, held.maybe = serving, None, None


def _finish(url: str, bundles: dict[str, str], held: Held, seen: Crashes) -> None:
    """The backfill goes on to its end, from what is left."""
    actor = Actor(url, bundles)
    actor.switch("successor")
    left = [work.item_id for work in plan_backfill(actor.clients["successor"], "random")]
    expected = held.items["cloud"].keys() - held.items["successor"].keys()
    _ends(seen, set(left) == expected, f"left to do: {len(left)} items, {len(expected)} expected")
    for start in range(0, len(left), BATCH):
        part = left[start : start + BATCH]
        dropped = set(part) - set(actor.backfill("successor", part, held))
        _ends(seen, not dropped, f"not backfilled: {sorted(dropped)}")
    told = state(actor.clients["successor"], actor.space_id)
    _ends(seen, told.embedded == told.items, f"{told.embedded} of {told.items} items backfilled at the end")
    actor.close()


def _ends(seen: Crashes, good: bool, otherwise: str) -> None:
    if not good:
        seen.unfinished += 1
        seen.said.append(otherwise)


def _other(name: str) -> str:
    return MODELS[1 - MODELS.index(name)]


def _seen(name: str, item_id: str, version: int) -> str:
    # What the gallery keeps: it divides by the norm, which may change a last bit.
    return digest(checked_vectors(vector_of(name, item_id, version)[None], DIM, "").tobytes())


def main() -> None:
    """Kill and print; or be the loading process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--load", nargs=4, metavar=("URL", "BUNDLES", "REPORT", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        given = json.loads(sys.stdin.read())
        url, bundles, report, seed = options.load
        load(url, json.loads(bundles), Path(report), Held(given["items"], None, given["serving"]), int(seed))
        return
    # A trust store of its own: the toy's key is not for the user's.
    with tempfile.TemporaryDirectory(prefix="samespace-kills-") as name:
        os.environ["SAMESPACE_CONFIG_DIR"] = name
        seen = crash(Path(name), toy_upgrade(Path(name)), options.rounds, options.seed)
    print(f"{dict(seen.rounds)} kills, {seen.checked} item checks, {seen.answers} answers: {seen.wrong}", *seen.said, sep="\n")
    sys.exit(any(seen.wrong.values()))


if __name__ == "__main__":
    main()
