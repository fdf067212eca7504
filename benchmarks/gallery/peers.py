"""Other stores beside ours on the same data and machine: latency, recall, and what is left after kill -9."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from dataset import DIM, Dataset, facts, item_id, nearest

from samespace.cloud.gallery.embedded import EmbeddedPostgres
from samespace.cloud.gallery.indexes.base import StoredItem
from samespace.cloud.gallery.indexes.pgvector import PgVectorIndex
from samespace.cloud.gallery.postgres import Database

__all__ = ["ENGINES", "measure_ours", "measure_peer"]

ENGINES = ("chroma", "lancedb", "qdrant-local", "qdrant-edge", "milvus-lite")
PACKAGES = (
    "numpy==1.26.4",
    "pandas<3",
    "pyarrow<26",
    "chromadb",
    "lancedb",
    "qdrant-client",
    "qdrant-edge-py",
    "pymilvus",
    "milvus-lite",
)
K = 10
_MODEL = "m-" + "5" * 32
_STORE = Path(__file__).with_name("peer_store.py")


def peers_python(folder: Path) -> Path:
    """An environment with the peers in it, made at the first time; or the one that SAMESPACE_PEERS_PYTHON names."""
    if given := os.environ.get("SAMESPACE_PEERS_PYTHON"):
        return Path(given)
    python, done = folder / "venv" / "bin" / "python", folder / "venv" / ".done"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder / "venv")], check=True, timeout=300)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--only-binary", ":all:"]
        subprocess.run([*pip, *PACKAGES], check=True, timeout=1800)
        done.touch()
    return python


def measure_peer(engine: str, folder: Path, data: Dataset, n: int, queries: int, limit: float) -> dict[str, Any]:
    """Figures of one peer; ``error`` instead, where it did not finish."""
    python, work = peers_python(folder), folder / engine
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    rows, asked = data.rows(n), data.queries(queries)
    np.save(work / "rows.npy", rows)
    np.save(work / "queries.npy", asked)
    command = [str(python), str(_STORE), engine, "", str(work / "rows.npy"), str(work / "queries.npy"), ""]
    try:
        measured = _asked(command, work / "measured", "measure", limit)
        told = _judged(measured, rows, asked)
        return told | {"kept": _killed(command, work / "killed", n, limit)} | {"disk_bytes": _bytes(work / "measured")}
    except subprocess.TimeoutExpired:
        return {"error": f"not finished within {limit:.0f} s"}
    except (subprocess.CalledProcessError, ValueError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        return {"error": said[-1][:300] if said else "no answer"}


def measure_ours(folder: Path, data: Dataset, n: int, queries: int) -> dict[str, Any]:
    """The same of the index of the gallery, in this process, as the peers are in theirs; kills.py kills it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows, asked = data.rows(n), data.queries(queries)
    with EmbeddedPostgres(folder / "data") as server:
        database = Database(server.url)
        index = PgVectorIndex(database)
        index.prepare(_MODEL, DIM)
        begin = time.perf_counter()
        for first in range(0, n, 500):
            some = rows[first : first + 500]
            index.upsert(_MODEL, [StoredItem(item_id(first + i), row, facts(first + i)) for i, row in enumerate(some)])
        result: dict[str, Any] = {"add_s": time.perf_counter() - begin, "build_s": 0.0}
        for name, where in (("search", None), ("filtered", {"tenth": 0})):
            taken, found = [], []
            index.search(_MODEL, asked[:1], K, where=where)
            for row in asked:
                begin = time.perf_counter()
                (hits,) = index.search(_MODEL, row[None], K, where=where)
                taken.append((time.perf_counter() - begin) * 1e3)
                found.append([int(hit.item_id) for hit in hits])
            result |= {f"{name}_ms": taken, f"{name}_ids": found}
        with database.transaction() as connection:
            size = connection.execute("SELECT pg_total_relation_size('items')").fetchone()
        database.close()
    assert size is not None
    return _judged(result, rows, asked) | {"disk_bytes": size[0]}


def _judged(measured: dict[str, Any], rows: np.ndarray, asked: np.ndarray) -> dict[str, Any]:
    told: dict[str, Any] = {"n": len(rows), "queries": len(asked), "add_s": measured["add_s"], "build_s": measured["build_s"]}
    for name, every in (("search", 1), ("filtered", 10)):
        truth = nearest(rows, asked, K, every)
        recalls = [len(set(some) & set(best)) / len(best) for some, best in zip(measured[f"{name}_ids"], truth, strict=True)]
        told |= {f"{name}_ms": float(np.median(measured[f"{name}_ms"])), f"{name}_recall": float(np.mean(recalls))}
    return told


def _killed(command: list[str], store: Path, n: int, limit: float) -> dict[str, int]:
    """Vectors that were acknowledged before a kill -9 in the middle, and how many are there afterwards."""
    process = subprocess.Popen(_with(command, store, "load"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    acknowledged = 0
    try:
        assert process.stdout is not None
        for line in process.stdout:
            acknowledged = int(line) if line.strip().isdigit() else acknowledged
            if acknowledged >= n // 2:
                break
    finally:
        process.kill()
        process.wait()
    there = _asked(command, store, "count", limit)
    return {"acknowledged": acknowledged, "there": there}


def _asked(command: list[str], store: Path, action: str, limit: float) -> Any:
    done = subprocess.run(_with(command, store, action), capture_output=True, text=True, timeout=limit, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def _with(command: list[str], store: Path, action: str) -> list[str]:
    return [*command[:3], str(store), *command[4:6], action]


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
