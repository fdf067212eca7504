"""One peer in a process of its own, with numpy and the peer's package only.

python peer_store.py ENGINE FOLDER VECTORS.npy QUERIES.npy measure     figures as JSON on stdout
python peer_store.py ENGINE FOLDER VECTORS.npy QUERIES.npy load        a line for each acknowledged batch, until killed
python peer_store.py ENGINE FOLDER VECTORS.npy QUERIES.npy count       how many items are there
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

K, BATCH, EVERY = 10, 500, 10


class Chroma:
    def __init__(self, folder: Path, dim: int) -> None:
        import chromadb

        settings = chromadb.config.Settings(anonymized_telemetry=False)
        self.collection = chromadb.PersistentClient(str(folder), settings=settings).get_or_create_collection(
            "items", metadata={"hnsw:space": "ip"}
        )

    def add(self, first: int, rows: np.ndarray) -> None:
        numbers = range(first, first + len(rows))
        facts = [{"tenth": number % EVERY} for number in numbers]
        self.collection.upsert([str(number) for number in numbers], embeddings=rows, metadatas=facts)

    def build(self) -> None:
        """Builds while it adds."""

    def search(self, row: np.ndarray, tenth: bool) -> list[int]:
        where = {"tenth": 0} if tenth else None
        return [int(i) for i in self.collection.query(query_embeddings=row[None], n_results=K, where=where)["ids"][0]]

    def count(self) -> int:
        return self.collection.count()


class Lance:
    def __init__(self, folder: Path, dim: int) -> None:
        import lancedb
        import pyarrow as pa

        self.pa = pa
        self.schema = pa.schema([("id", pa.int64()), ("tenth", pa.int64()), ("vector", pa.list_(pa.float32(), dim))])
        database = lancedb.connect(str(folder))
        self.table = database.create_table("items", schema=self.schema, exist_ok=True)

    def add(self, first: int, rows: np.ndarray) -> None:
        numbers = np.arange(first, first + len(rows))
        vectors = self.pa.FixedSizeListArray.from_arrays(self.pa.array(rows.ravel()), rows.shape[1])
        self.table.add(
            self.pa.Table.from_arrays([self.pa.array(numbers), self.pa.array(numbers % EVERY), vectors], schema=self.schema)
        )

    def build(self) -> None:
        self.table.create_index(metric="cosine", index_type="IVF_HNSW_SQ", vector_column_name="vector")

    def search(self, row: np.ndarray, tenth: bool) -> list[int]:
        query = self.table.search(row, vector_column_name="vector").distance_type("cosine").nprobes(20).refine_factor(4)
        query = query.where("tenth = 0", prefilter=True) if tenth else query
        return [int(found["id"]) for found in query.limit(K).to_list()]

    def count(self) -> int:
        return self.table.count_rows()


class QdrantLocal:
    def __init__(self, folder: Path, dim: int) -> None:
        from qdrant_client import QdrantClient, models

        self.models, self.client = models, QdrantClient(path=str(folder))
        if not self.client.collection_exists("items"):
            self.client.create_collection("items", models.VectorParams(size=dim, distance=models.Distance.DOT))

    def add(self, first: int, rows: np.ndarray) -> None:
        points = [
            self.models.PointStruct(id=first + i, vector=row.tolist(), payload={"tenth": (first + i) % EVERY})
            for i, row in enumerate(rows)
        ]
        self.client.upsert("items", points)

    def build(self) -> None:
        """It compares all."""

    def search(self, row: np.ndarray, tenth: bool) -> list[int]:
        match = self.models.FieldCondition(key="tenth", match=self.models.MatchValue(value=0))
        chosen = self.models.Filter(must=[match]) if tenth else None
        return [int(p.id) for p in self.client.query_points("items", query=row.tolist(), limit=K, query_filter=chosen).points]

    def count(self) -> int:
        return self.client.count("items").count


class QdrantEdge:
    def __init__(self, folder: Path, dim: int) -> None:
        import qdrant_edge as edge

        self.edge = edge
        config = edge.EdgeConfig(vectors={"v": edge.EdgeVectorParams(size=dim, distance=edge.Distance.Dot)})
        there = folder.is_dir() and any(folder.iterdir())
        folder.mkdir(parents=True, exist_ok=True)
        self.shard = edge.EdgeShard.load(str(folder)) if there else edge.EdgeShard.create(str(folder), config)

    def add(self, first: int, rows: np.ndarray) -> None:
        points = [self.edge.Point(first + i, {"v": row.tolist()}, {"tenth": (first + i) % EVERY}) for i, row in enumerate(rows)]
        self.shard.update(self.edge.UpdateOperation.upsert_points(points))

    def build(self) -> None:
        self.shard.optimize()

    def search(self, row: np.ndarray, tenth: bool) -> list[int]:
        edge = self.edge
        chosen = edge.Filter(must=[edge.FieldCondition("tenth", match=edge.MatchValue(0))]) if tenth else None
        query = edge.Query.Nearest(row.tolist(), using="v")
        return [int(p.id) for p in self.shard.query(edge.QueryRequest(limit=K, query=query, filter=chosen))]

    def count(self) -> int:
        return self.shard.count(self.edge.CountRequest(exact=True))


class MilvusLite:
    def __init__(self, folder: Path, dim: int) -> None:
        from pymilvus import DataType, MilvusClient

        folder.mkdir(parents=True, exist_ok=True)
        self.client = MilvusClient(str(folder / "items.db"))
        if not self.client.has_collection("items"):
            schema = self.client.create_schema(auto_id=False)
            schema.add_field("id", DataType.INT64, is_primary=True)
            schema.add_field("tenth", DataType.INT64)
            schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
            index = self.client.prepare_index_params()
            index.add_index("vector", index_type="HNSW", metric_type="IP", params={"M": 16, "efConstruction": 64})
            self.client.create_collection("items", schema=schema, index_params=index, consistency_level="Strong")
        self.client.load_collection("items")

    def add(self, first: int, rows: np.ndarray) -> None:
        numbers = range(first, first + len(rows))
        made = zip(numbers, rows, strict=True)
        self.client.upsert("items", [{"id": n, "tenth": n % EVERY, "vector": row.tolist()} for n, row in made])

    def build(self) -> None:
        self.client.flush("items")

    def search(self, row: np.ndarray, tenth: bool) -> list[int]:
        options = {"search_params": {"metric_type": "IP", "params": {"ef": 100}}, "filter": "tenth == 0" if tenth else ""}
        return [int(hit["id"]) for hit in self.client.search("items", data=[row.tolist()], limit=K, **options)[0]]

    def count(self) -> int:
        return int(self.client.query("items", filter="", output_fields=["count(*)"])[0]["count(*)"])


ENGINES = {
    "chroma": Chroma,
    "lancedb": Lance,
    "qdrant-local": QdrantLocal,
    "qdrant-edge": QdrantEdge,
    "milvus-lite": MilvusLite,
}


def measure(store: Any, rows: np.ndarray, queries: np.ndarray) -> dict[str, Any]:
    """Seconds of adding and building, milliseconds and ids of each search, with and without a filter."""
    begin = time.perf_counter()
    for first in range(0, len(rows), BATCH):
        store.add(first, rows[first : first + BATCH])
    added = time.perf_counter() - begin
    store.build()
    built = time.perf_counter() - begin - added
    result: dict[str, Any] = {"add_s": added, "build_s": built}
    for name, tenth in (("search", False), ("filtered", True)):
        store.search(queries[0], tenth)
        taken, found = [], []
        for row in queries:
            begin = time.perf_counter()
            found.append(store.search(row, tenth))
            taken.append((time.perf_counter() - begin) * 1e3)
        result |= {f"{name}_ms": taken, f"{name}_ids": found}
    return result


def main() -> None:
    """Do what the arguments say."""
    engine, folder, vectors, asked, action = sys.argv[1:]
    rows, queries = np.load(vectors, mmap_mode="r"), np.load(asked)
    store = ENGINES[engine](Path(folder), rows.shape[1])
    if action == "measure":
        print(json.dumps(measure(store, np.asarray(rows), queries)), flush=True)
    elif action == "count":
        print(json.dumps(store.count()), flush=True)
    else:
        for first in range(0, len(rows), BATCH):
            store.add(first, np.asarray(rows[first : first + BATCH]))
            print(first + BATCH, flush=True)
        time.sleep(3600)  # until killed


if __name__ == "__main__":
    main()
