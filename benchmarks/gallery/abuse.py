"""What 10 000 slow connections, and bodies that never end, cost the service: memory, and the time of honest requests.

python benchmarks/gallery/abuse.py --connections 10000    # benchmarks/results/gallery_abuse.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import selectors
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import psutil

from samespace.sdk.evidence import EvidenceRecord, commit_id, describe_machine, write_ledger

ROOT = Path(__file__).parents[2]
#: MiB that the service may grow by, and seconds that an honest request may take meanwhile (95th percentile).
MEMORY_BAR, LATENCY_BAR = 256, 1.0
HEADS = (
    b"",
    b"POST /v1/search HTTP/1.1\r\nHost: x\r\nX-Slow: ",
    b"POST /v1/items HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n",
)
_MIB = 1 << 20


class Watch:
    """Memory of a process and latency of an honest client, until stopped."""

    def __init__(self, url: str, pid: int) -> None:
        self.url, self.process = url, psutil.Process(pid)
        self.start = self.process.memory_info().rss
        self.peak, self.open, self.seconds, self.failed = 0, 0, [], 0
        self._stop, self.first = threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._memory, self._ask)]

    def __enter__(self) -> Watch:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _memory(self) -> None:
        while not self._stop.wait(0.05):
            self.peak = max(self.peak, self.process.memory_info().rss - self.start)
            self.open = max(self.open, self.process.num_fds())

    def _ask(self) -> None:
        # One connection that was there before: a newcomer may well find the house full, and be sent away at once.
        with httpx.Client(base_url=self.url, timeout=30) as http:
            while not self._stop.wait(0.05):
                start = time.perf_counter()
                try:
                    http.get("/ready").raise_for_status()
                    self.seconds.append(time.perf_counter() - start)
                    self.first.set()
                except httpx.HTTPError:
                    self.failed += 1


def attack(host: str, port: int, count: int, seconds: float, held_by: Callable[[], int]) -> tuple[Counter[str], int]:
    """Hold ``count`` connections as long as one is let, dripping a byte into each now and then; how they ended, and how many
    the service holds then.
    """
    ended: Counter[str] = Counter()
    selector, until = selectors.DefaultSelector(), time.monotonic() + seconds
    for number in range(count):
        connection = socket.socket()
        connection.setblocking(False)
        connection.connect_ex((host, port))
        selector.register(connection, selectors.EVENT_WRITE | selectors.EVENT_READ, HEADS[number % len(HEADS)])
    while time.monotonic() < until and selector.get_map():
        for key, events in selector.select(0.1):
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            try:
                if events & selectors.EVENT_WRITE:
                    connection.send(key.data or b"")
                    selector.modify(connection, selectors.EVENT_READ, b"x")
                elif events & selectors.EVENT_READ:
                    answer = connection.recv(4096)
                    ended["refused with an answer" if answer else "closed"] += 1
                    selector.unregister(connection)
                    connection.close()
            except OSError:
                ended["reset"] += 1
                selector.unregister(connection)
                connection.close()
        waiting = list(selector.get_map().values())
        for key in random.sample(waiting, min(1000, len(waiting))):
            selector.modify(key.fileobj, selectors.EVENT_READ | selectors.EVENT_WRITE, b"x")
    # The service has never seen these: its kernel dropped them, for more came at once than may wait to be accepted.
    ended["never answered"] = len(selector.get_map())
    held = held_by()
    for key in list(selector.get_map().values()):
        connection = key.fileobj
        assert isinstance(connection, socket.socket)
        connection.close()
    return ended, held


def _open(service: psutil.Process) -> list[object]:
    return [c for c in service.net_connections("tcp") if c.status == psutil.CONN_ESTABLISHED]


def main() -> None:
    """Measure, print, and write the ledger."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--connections", type=int, default=10_000)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, options.connections + 1000), hard))
    with tempfile.TemporaryDirectory(prefix="samespace-abuse-") as name:
        code = "from samespace.sdk.cli import main; main()"
        command = [sys.executable, "-c", code, "gallery", "serve", "--json", "--port", "0", "--memory"]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"SAMESPACE_CONFIG_DIR": name},
        )
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            with httpx.Client(base_url=url) as http:
                http.get("/ready")
            with Watch(url, process.pid) as watch:
                parts = httpx.URL(url)
                watch.first.wait(30)
                service = psutil.Process(process.pid)
                ended, held = attack(parts.host, parts.port or 80, options.connections, 100, lambda: len(_open(service)))
                answered = httpx.get(f"{url}/v1/health", timeout=30).status_code
        finally:
            process.terminate()
            process.wait(30)
    slow = float(np.percentile(watch.seconds, 95)) if watch.seconds else float("inf")
    peak = watch.peak / _MIB
    print(f"{dict(ended)}; {held} held at the end; at most {watch.open} descriptors, {peak:.0f} MiB more")
    print(f"honest requests: {len(watch.seconds)}, p95 {slow:.3f} s, {watch.failed} failed; then {answered}")
    common = {
        "seeds": (),
        "device": describe_machine(),
        "command": f"python benchmarks/gallery/abuse.py --connections {options.connections}",
        "commit": commit_id(ROOT),
    }
    clean = held <= 2 and answered == 200  # the honest one's
    records = [
        EvidenceRecord(
            id="gallery-slow-connections",
            claim=f"{options.connections} slow connections: MiB that the service grows by; it sends all away, and answers on",
            bar=f"<= {MEMORY_BAR} MiB, none held",
            measured=peak,
            ci95=(peak, peak),
            n=options.connections,
            holds=peak <= MEMORY_BAR and clean,
            reason="" if peak <= MEMORY_BAR and clean else f"{held} held, then {answered}",
            **common,
        ),
        EvidenceRecord(
            id="gallery-slow-connections-latency",
            claim="seconds of an honest request on an open connection meanwhile, 95th percentile",
            bar=f"<= {LATENCY_BAR} s",
            measured=slow,
            ci95=(float(np.median(watch.seconds or [0])), slow),
            n=len(watch.seconds),
            holds=slow <= LATENCY_BAR and not watch.failed,
            reason="" if slow <= LATENCY_BAR and not watch.failed else f"{watch.failed} failed",
            **common,
        ),
    ]
    write_ledger(ROOT / "benchmarks" / "results" / "gallery_abuse.json", records)


if __name__ == "__main__":
    main()
