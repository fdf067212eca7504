"""kill -9 of client, service and database at random moments of adding, deleting and switching, and what is left afterwards.

A loading process adds batches, deletes items and switches which of two models serves, one operation after the other, and tells
each acknowledgement at once. At a random moment one of the three is killed; everything is started again, and what the gallery
holds is compared, item by item and vector by vector, with what was acknowledged: all of it is there, once, unchanged; what was
deleted is not; an operation that was under way happened as a whole or not at all; and an approximate search still finds what an
exact one does.

    python benchmarks/gallery/kills.py --rounds 100    # benchmarks/results/gallery_kills.json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np

from samespace.sdk.evidence import EvidenceRecord, commit_id, describe_machine, write_ledger
from samespace.sdk.gallery import GalleryClient
from samespace.sdk.gallery.client import NewItem
from samespace.sdk.gallery.wire import Vectors
from samespace.sdk.identity import digest

ROOT = Path(__file__).parents[2]
TARGETS = ("client", "service", "database")
MODELS = ("cloud", "phone")
BATCH, DIM = 8, 24
#: Seconds within which anything that was started must have answered.
_LIMIT = 60
_LOAD = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"


@dataclass
class Held:
    """What the gallery must hold: item id -> version, for each model; and which model serves.

    Attributes:
        items: acknowledged and not deleted.
        maybe: model and ids of the operation that was under way, with the version that it would have written (None deletes).
        serving: the model that was last acknowledged.
        switching: the model that was asked for when it was cut off.
    """

    items: dict[str, dict[str, int]] = field(default_factory=lambda: {name: {} for name in MODELS})
    maybe: tuple[str, dict[str, int | None]] | None = None
    serving: str = "cloud"
    switching: str | None = None

    def take(self, line: str) -> None:
        """Read a line of the loading process: an operation that begins, or that was acknowledged."""
        told = json.loads(line)
        if told["kind"] == "switch":
            self.switching = told["model"] if told["state"] == "begin" else None
            self.serving = told["model"] if told["state"] == "done" else self.serving
            return
        if told["state"] == "begin":
            self.maybe = (told["model"], told["items"])
            return
        self.maybe = None
        for item_id, version in told["items"].items():
            if version is None:
                self.items[told["model"]].pop(item_id, None)
            else:
                self.items[told["model"]][item_id] = version


def vector_of(model: str, item_id: str, version: int) -> np.ndarray:
    """``(24,)`` unit-norm float32 that everybody can make again."""
    seed = int(digest(f"{model} {item_id} {version}".encode())[:12], 16)
    row = np.random.default_rng(seed).normal(size=DIM)
    return (row / np.linalg.norm(row)).astype(np.float32)


def load(url: str, bundles: dict[str, str], held: Held, seed: int) -> None:
    """Work until killed; a line on stdout before and after each operation."""
    chance = random.Random(seed)
    items, serving = {name: dict(known) for name, known in held.items.items()}, held.serving
    clients = {name: GalleryClient.open(url, path) for name, path in bundles.items()}
    space = clients["cloud"].embedder.space_id

    def tell(**what: object) -> None:
        print(json.dumps(what), flush=True)

    for number in range(1_000_000):
        kind = chance.choices(("add", "replace", "delete", "switch"), (6, 2, 2, 1))[0]
        mine = items[serving]
        if kind == "switch":
            other = next(name for name in MODELS if name != serving)
            tell(kind="switch", state="begin", model=other)
            model_id = clients[other].embedder.model_id
            httpx.put(f"{url}/v1/spaces/{space}/aliases/serving", json={"model_id": model_id}, timeout=30).raise_for_status()
            serving = other
            tell(kind="switch", state="done", model=other)
        elif kind == "delete" and mine:
            item_id = chance.choice(sorted(mine))
            tell(kind="delete", state="begin", model=serving, items={item_id: None})
            clients[serving].delete(item_id)
            mine.pop(item_id)
            tell(kind="delete", state="done", model=serving, items={item_id: None})
        else:
            known = sorted(mine)
            ids = chance.sample(known, min(BATCH, len(known))) if kind == "replace" and known else []
            ids = ids or [f"{seed}-{number}-{place}" for place in range(BATCH)]
            wanted = {item_id: mine.get(item_id, 0) + 1 for item_id in ids}
            tell(kind="add", state="begin", model=serving, items=wanted)
            clients[serving].add(NewItem(i, vector_of(serving, i, v), {"version": v}) for i, v in wanted.items())
            mine.update(wanted)
            tell(kind="add", state="done", model=serving, items=wanted)


class Served:
    """``samespace gallery serve`` on a folder, in a process of its own."""

    def __init__(self, data: Path, bundles: dict[str, str]) -> None:
        code = "from samespace.sdk.cli import main; main()"
        command = [sys.executable, "-c", code, "gallery", "serve", "--json", "--port", "0", "--data", str(data)]
        for path in bundles.values():
            command += ["--bundle", path]
        self.data = data
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the service did not start")
        self.url: str = json.loads(line)["url"]

    def kill(self, *, database: bool) -> None:
        """As a power cut does; with the database's own server, or leaving it behind."""
        if database:
            os.kill(int((self.data / "postgres" / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
        self.process.kill()
        self.process.communicate(timeout=_LIMIT)

    def stop(self) -> None:
        """As Ctrl-C does."""
        self.process.terminate()
        self.process.communicate(timeout=_LIMIT)


@dataclass
class Findings:
    """What was seen over all rounds."""

    rounds: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0
    lost: int = 0
    changed: int = 0
    twice: int = 0
    revived: int = 0
    torn: int = 0
    aliases: int = 0
    recalls: list[float] = field(default_factory=list)

    @property
    def wrong(self) -> int:
        """Everything that must be 0."""
        return self.lost + self.changed + self.twice + self.revived + self.torn + self.aliases


def run(folder: Path, bundles: dict[str, str], rounds: int, seed: int) -> Findings:
    """Kill ``rounds`` times, each target in turn, and look what is there each time."""
    chance, findings, held = random.Random(seed), Findings(), Held()
    data = folder / "data"
    served = Served(data, bundles)
    try:
        for number in range(rounds):
            target = TARGETS[number % len(TARGETS)]
            state = {"items": held.items, "serving": held.serving}
            options = [served.url, json.dumps(bundles), str(seed + number)]
            for line in loaded_until_killed(__file__, options, state, served, target, chance):
                held.take(line)
            findings.rounds[target] += 1
            if target != "client":
                served = Served(data, bundles)
            _look(served.url, bundles, held, findings)
    finally:
        served.stop()
    return findings


def loaded_until_killed(
    script: str, options: list[str], state: dict[str, Any], served: Served, target: str, chance: random.Random
) -> Iterator[str]:
    """What a loading process said until it was killed at a random moment: ``script --load OPTIONS``, ``state`` on its stdin.

    Args:
        target: what is killed first: the client (the loading process), or the service, with or without the database.
    """
    loader = subprocess.Popen(
        [sys.executable, "-c", _LOAD, script, "--load", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert loader.stdin is not None
    assert loader.stdout is not None
    loader.stdin.write(json.dumps(state))
    loader.stdin.close()
    for _ in range(chance.randint(2, 80)):
        if line := loader.stdout.readline():
            yield line
    # A moment of its own, anywhere within an operation.
    time.sleep(chance.uniform(0, 0.02))
    if target != "client":
        served.kill(database=target == "database")
    loader.kill()
    yield from (line for line in loader.stdout.read().splitlines(keepends=True) if line.endswith("\n"))
    loader.wait(_LIMIT)


def _look(url: str, bundles: dict[str, str], held: Held, findings: Findings) -> None:
    """Compare the gallery with what it must hold, and go on from what it does hold."""
    clients = {name: GalleryClient.open(url, path) for name, path in bundles.items()}
    model_ids = {name: client.embedder.model_id for name, client in clients.items()}
    space = clients["cloud"].embedder.space_id
    alias = f"{url}/v1/spaces/{space}/aliases"
    serving = next(n for n in MODELS if model_ids[n] == httpx.get(alias, timeout=30).json()["aliases"]["serving"])
    findings.aliases += serving not in (held.serving, held.switching or held.serving)
    for name, client in clients.items():
        httpx.put(f"{alias}/serving", json={"model_id": model_ids[name]}, timeout=30).raise_for_status()
        admission = client.handshake()
        found = exported(url, admission.token)
        counts = Counter(item["item_id"] for item in found)
        findings.twice += sum(count > 1 for count in counts.values())
        there = {item["item_id"]: item for item in found}
        maybe = held.maybe[1] if held.maybe is not None and held.maybe[0] == name else {}
        done = {i: (i in there and there[i]["metadata"]["version"] == v) if v else i not in there for i, v in maybe.items()}
        findings.torn += len(set(done.values())) > 1
        expected = {**held.items[name]}
        if maybe and all(done.values()):
            for item_id, version in maybe.items():
                if version is None:
                    expected.pop(item_id, None)
                else:
                    expected[item_id] = version
        findings.acknowledged += len(expected)
        findings.lost += len(expected.keys() - there.keys())
        findings.revived += len(there.keys() - expected.keys())
        for item_id in expected.keys() & there.keys():
            row = Vectors.model_validate(there[item_id]["vector"]).array()[0]
            version = expected[item_id]
            same = there[item_id]["metadata"] == {"version": version}
            findings.changed += not (same and np.allclose(row, vector_of(name, item_id, version), atol=1e-6))
        held.items[name] = expected
        if len(expected) >= 20:
            findings.recalls.append(_recall(client, name))
        client.close()
    httpx.put(f"{alias}/serving", json={"model_id": model_ids[serving]}, timeout=30).raise_for_status()
    held.serving, held.switching, held.maybe = serving, None, None


def exported(url: str, token: str) -> list[dict]:
    items, after = [], ""
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=30) as http:
        while after is not None:
            page = http.get("/v1/items/export", params={"after": after, "limit": 1024}).raise_for_status().json()
            items += page["items"]
            after = page["after"]
    return items


def _recall(client: GalleryClient, name: str) -> float:
    """Recall@10 of the approximate search, by the exact one."""
    queries = [vector_of(name, f"query-{number}", 0) for number in range(16)]
    near, exact = client.search_batch(queries, 10), client.search_batch(queries, 10, exact=True)
    shares = [len({h.item_id for h in a} & {h.item_id for h in b}) / len(b) for a, b in zip(near, exact, strict=True)]
    return float(np.mean(shares))


def toy_bundles(folder: Path) -> dict[str, str]:
    """The small bundles that the tests use."""
    world = test_world().GalleryWorld(folder)
    return {name: str(world.bundle(name)) for name in MODELS}


def test_world() -> ModuleType:
    path = ROOT / "tests" / "cloud" / "gallery" / "conftest.py"
    spec = importlib.util.spec_from_file_location("gallery_test_world", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Measure, print, and write the ledger; or be the loading process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--load", nargs=3, metavar=("URL", "BUNDLES", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        state = json.loads(sys.stdin.read())
        load(options.load[0], json.loads(options.load[1]), Held(state["items"], None, state["serving"]), int(options.load[2]))
        return
    # A trust store of its own: the toy's key is not for the user's.
    with tempfile.TemporaryDirectory(prefix="samespace-kills-") as name:
        os.environ["SAMESPACE_CONFIG_DIR"] = name
        findings = run(Path(name), toy_bundles(Path(name)), options.rounds, options.seed)
    total, recall = sum(findings.rounds.values()), min(findings.recalls, default=0.0)
    wrong = {key: getattr(findings, key) for key in ("lost", "changed", "twice", "revived", "torn", "aliases")}
    print(f"{dict(findings.rounds)} kills, {findings.acknowledged} item checks: {wrong}; lowest recall@10 {recall:.3f}")
    common = {
        "seeds": (options.seed,),
        "device": describe_machine(),
        "command": f"python benchmarks/gallery/kills.py --rounds {options.rounds}",
        "commit": commit_id(ROOT),
        "n": total,
    }
    holds = findings.wrong == 0
    records = [
        EvidenceRecord(
            id="gallery-kills",
            claim="kill -9 of client, service and database under load: every acknowledged write is there, once, unchanged",
            bar="0 items lost, changed, twice, revived or torn, 0 wrong aliases",
            measured=float(findings.wrong),
            ci95=(float(findings.wrong), float(findings.wrong)),
            holds=holds,
            reason="" if holds else str(wrong),
            **common,
        ),
        EvidenceRecord(
            id="gallery-kills-recall",
            claim="recall@10 of the approximate search after each restart, the lowest",
            bar=">= 0.98",
            measured=recall,
            ci95=(recall, float(max(findings.recalls, default=0.0))),
            holds=recall >= 0.98,
            reason="" if recall >= 0.98 else "the index did not survive",
            **common,
        ),
    ]
    write_ledger(ROOT / "benchmarks" / "results" / "gallery_kills.json", records)


if __name__ == "__main__":
    main()
