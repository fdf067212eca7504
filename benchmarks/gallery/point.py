"""Everything that is measured at one number of vectors: search, many clients, recall, filters, adding, memory, disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from bare import connect, merge, search, statement
from dataset import SHARES, Dataset, facts, item_id, nearest
from filled import bare_service, filled, service, size_of

from samespace.sdk.gallery import GalleryClient
from samespace.sdk.gallery.client import NewItem

__all__ = ["measure_point"]

K = 10
CLIENTS = 16


def measure_point(folder: Path, world: Any, data: Dataset, n: int, effort: dict[str, int]) -> dict[str, Any]:
    """Figures at ``n`` vectors; times of what is compared are taken in turn.

    Args:
        effort: ``queries`` one after the other, ``seconds`` of many clients at once, ``rounds`` of these, ``added`` vectors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bundle = world.bundle("cloud")
    with filled(folder, world, data, n) as store:
        queries, rows = data.queries(effort["queries"]), data.rows(n)
        truth = nearest(rows, queries, K)
        with (
            service(store.url, bundle) as (url, process),
            bare_service(store.url, store.model_id) as bare_url,
            GalleryClient.open(url, bundle) as client,
            httpx.Client(timeout=60) as http,
            connect(store.url) as connection,
        ):
            client.handshake()
            query = statement(store.model_id)
            for row in queries[:50]:  # the cache is warm for everybody
                search(connection, query, row, K)
            timed = _in_turn(
                queries,
                {
                    "service": lambda row: client.search(row, K),
                    "bare_route": lambda row: http.post(f"{bare_url}/search", content=row.tobytes()).json(),
                    "bare_query": lambda row: search(connection, query, row, K),
                },
            )
            found = [[int(hit.item_id) for hit in client.search(row, K)] for row in queries]
            result: dict[str, Any] = {"n": n, "k": K, **{f"{name}_ms": values for name, values in timed.items()}}
            result["recall"] = _recalls(found, truth)
            bare = [[int(hit[0]) for hit in search(connection, query, row, K)] for row in queries]
            result["bare_recall"] = _recalls(bare, truth)
            for name, every in SHARES.items():
                some = queries[: max(20, len(queries) // 4)]
                begin = time.perf_counter()
                hits = [[int(hit.item_id) for hit in client.search(row, K, where={name: 0})] for row in some]
                result[f"filtered_{name}_ms"] = (time.perf_counter() - begin) / len(some) * 1e3
                result[f"filtered_{name}_recall"] = _recalls(hits, nearest(rows, some, K, every))
            result |= _many(url, bare_url, bundle, queries, effort)
            result |= _adding(client, connection, store.model_id, data, n, effort["added"])
            workers = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
            result["service_rss_bytes"] = sum(psutil.Process(pid).memory_info().rss for pid in workers)
            table, index = size_of(store.url, store.model_id)
        return result | {"table_bytes": table, "index_bytes": index, "filled": store.facts}


def _in_turn(queries: np.ndarray, calls: dict[str, Callable[[np.ndarray], Any]]) -> dict[str, list[float]]:
    """Milliseconds of each call for each query."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn, row in enumerate(queries):
        names = list(calls)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            begin = time.perf_counter()
            calls[name](row)
            taken[name].append((time.perf_counter() - begin) * 1e3)
    return taken


def _recalls(found: list[list[int]], truth: list[list[int]]) -> list[float]:
    return [len(set(some) & set(best)) / max(1, len(best)) for some, best in zip(found, truth, strict=True)]


def _many(url: str, bare_url: str, bundle: Path, queries: np.ndarray, effort: dict[str, int]) -> dict[str, list[float]]:
    """Searches a second with 16 clients, in turn; each client is a thread with a connection of its own."""
    clients = [GalleryClient.open(url, bundle) for _ in range(CLIENTS)]
    others = [httpx.Client(timeout=60) for _ in range(CLIENTS)]
    try:
        for client in clients:
            client.handshake()
        rates: dict[str, list[float]] = {"service_rate": [], "bare_route_rate": []}
        for _ in range(effort["rounds"]):
            rates["service_rate"].append(_rate(lambda i, row: clients[i].search(row, K), queries, effort["seconds"]))
            rates["bare_route_rate"].append(
                _rate(
                    lambda i, row: others[i].post(f"{bare_url}/search", content=row.tobytes()).json(),
                    queries,
                    effort["seconds"],
                )
            )
        return rates
    finally:
        for one in (*clients, *others):
            one.close()


def _rate(call: Callable[[int, np.ndarray], Any], queries: np.ndarray, seconds: float) -> float:
    counts, until = [0] * CLIENTS, time.perf_counter() + seconds

    def work(number: int) -> None:
        while time.perf_counter() < until:
            call(number, queries[(number * 31 + counts[number]) % len(queries)])
            counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - begin)


def _adding(client: GalleryClient, connection: Any, model_id: str, data: Dataset, n: int, added: int) -> dict[str, list[float]]:
    """Vectors a second of the service, and of a bare COPY-and-merge, into the same indexed table, in turn."""
    size, rates = max(1, added // 4), {"service_added_rate": [], "bare_added_rate": []}
    rows = data.block(2_000_000, 8 * size)
    numbers = range(n, n + len(rows))
    try:
        for turn in range(8):
            mine = [(item_id(numbers[i]), rows[i], facts(numbers[i])) for i in range(turn * size, (turn + 1) * size)]
            begin = time.perf_counter()
            if turn % 2:
                merge(connection, model_id, mine)
            else:
                client.add(NewItem(*item) for item in mine)
            rates["bare_added_rate" if turn % 2 else "service_added_rate"].append(size / (time.perf_counter() - begin))
    finally:
        ids = [item_id(number) for number in numbers]
        connection.execute("DELETE FROM items WHERE model_id = %s AND item_id = ANY(%s)", (model_id, ids))
        connection.execute("DELETE FROM changes WHERE model_id = %s AND item_id = ANY(%s)", (model_id, ids))
    return rates
