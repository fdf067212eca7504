"""How pgvector's index keeps vectors: whole, in half, or as signs. The table always keeps them whole, so that every
answer is ranked exactly; what differs is the index's size, its speed, and how many of the nearest it finds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import LiteralString, cast

from psycopg import sql

from samespace.sdk.errors import ConfigError, GalleryError

__all__ = ["STORAGES", "Storage", "checked", "index_name", "nearest", "storage_of"]

#: A few more rows than asked for come along and are ranked again in float64, so that all indexes agree.
SPARE = 16
#: What a search fetches of an item. Bytes and text, since what comes of them is made for all rows at once, or for some only.
_ROW = sql.SQL("item_id, vector_send(embedding), metadata::text")
#: pgvector looks no farther at once.
_MOST_EFFORT = 1000


@dataclass(frozen=True)
class Storage:
    """One way to index vectors.

    Attributes:
        name: what a user says.
        longest: dimensions that pgvector indexes in this way; longer vectors are compared one by one.
        column: SQL of what the index holds, with the number of dimensions as ``{dim}``.
        query: the same of a query.
        operator: of a distance between the two.
        operators: the index's class of operators.
        spread: how many rows per row asked for are ranked by their whole vectors.
        effort: how many rows, at least, a search keeps in sight.
    """

    name: str
    longest: int
    column: str
    query: str
    operator: str
    operators: str
    spread: int
    effort: int

    def candidates(self, k: int) -> int:
        """How many rows the index has to find, so that the ``k`` nearest are among them."""
        return (k + SPARE) * self.spread

    def sight(self, k: int) -> int:
        """``hnsw.ef_search`` for that many."""
        return min(_MOST_EFFORT, max(self.effort, 2 * (k + SPARE), self.candidates(k) if self.spread > 1 else 0))


#: In the order of their sizes: 4 bytes, 2 bytes and 1 bit per dimension.
STORAGES = {
    storage.name: storage
    for storage in (
        Storage("float32", 2_000, "(embedding::vector({dim}))", "%(query)b", "<#>", "vector_ip_ops", 1, 100),
        Storage("halfvec", 4_000, "(embedding::halfvec({dim}))", "%(query)b::halfvec({dim})", "<#>", "halfvec_ip_ops", 2, 100),
        Storage(
            "binary",
            64_000,
            "(binary_quantize(embedding)::bit({dim}))",
            "binary_quantize(%(query)b::vector({dim}))::bit({dim})",
            "<~>",
            "bit_hamming_ops",
            16,
            400,
        ),
    )
}


def storage_of(name: str) -> Storage:
    """The storage of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in STORAGES:
        raise ConfigError(f"--storage {name}: choose one of {', '.join(STORAGES)}")
    return STORAGES[name]


def index_name(model_id: str, storage: Storage) -> str:
    """Of a model's own index in a storage."""
    return f"items_{checked(model_id)}" + ("" if storage.name == "float32" else f"_{storage.name}")


def creation(model_id: str, dim: int, storage: Storage) -> sql.Composed:
    """What makes a model's index if it is not there."""
    return sql.SQL(
        "CREATE INDEX IF NOT EXISTS {name} ON items USING hnsw ({column} {operators}) WHERE model_id = {model}"
    ).format(
        name=sql.Identifier(index_name(model_id, storage)),
        column=_filled(storage.column, dim),
        operators=sql.SQL(storage.operators),  # pyright: ignore[reportArgumentType] - one of ours
        model=sql.Literal(model_id),
    )


@lru_cache(maxsize=1024)
def nearest(
    model_id: str, dim: int, storage: Storage | None, wanted: tuple[str, ...], *, page: bool, without: str | None = None
) -> LiteralString:
    """SQL for the rows nearest to ``query``: ``limit`` of them, by their whole vectors.

    Args:
        storage: whose index is to be asked; None compares every row.
        wanted: names of parameters, of each of which the metadata must contain one.
        page: only those not before the score ``nearest``.
        without: only items that this other model has not.
    """
    # The model is written out, not passed as a parameter: only then does the planner know which partial index fits. Without
    # the storage's expression no index fits, and every row is compared. pgvector's <#> is the negative inner product, so
    # ascending is nearest first.
    conditions: list[sql.Composable] = [sql.SQL("model_id = {}").format(sql.Literal(checked(model_id)))]
    conditions += [sql.SQL("metadata @> ANY({}::jsonb[])").format(sql.Placeholder(name)) for name in wanted]
    if page:
        conditions.append(sql.SQL("embedding <#> %(query)b >= %(nearest)s"))
    if without is not None:
        same = sql.SQL("SELECT true FROM items AS other WHERE other.model_id = {} AND other.item_id = items.item_id")
        # A scalar subquery is asked row by row, along an index. Of NOT EXISTS the planner makes a join, best for all rows.
        wording = sql.SQL("NOT EXISTS ({})") if storage is None else sql.SQL("({}) IS NULL")
        conditions.append(wording.format(same.format(sql.Literal(checked(without)))))
    where = sql.SQL(" AND ").join(conditions)
    if storage is None:
        every = sql.SQL(
            "SELECT {row} FROM items WHERE {where} ORDER BY embedding <#> %(query)b, item_id LIMIT %(limit)s"
        ).format(row=_ROW, where=where)
        return cast(LiteralString, every.as_string())
    found = sql.SQL("SELECT {row} FROM items WHERE {where} ORDER BY {column} {operator} {query} LIMIT {limit}").format(
        row=_ROW if storage.spread == 1 else sql.SQL("item_id, embedding, metadata"),
        where=where,
        column=_filled(storage.column, dim),
        operator=sql.SQL(storage.operator),  # pyright: ignore[reportArgumentType] - one of ours
        query=_filled(storage.query, dim),
        limit=sql.Placeholder("limit" if storage.spread == 1 else "candidates"),
    )
    if storage.spread == 1:
        return cast(LiteralString, found.as_string())
    outer = sql.SQL("SELECT {row} FROM ({found}) AS found ORDER BY embedding <#> %(query)b LIMIT %(limit)s")
    return cast(LiteralString, outer.format(row=_ROW, found=found).as_string())


def checked(model_id: str) -> str:
    """The id itself, which goes into SQL.

    Raises:
        GalleryError: it has another form than an id.
    """
    if not re.fullmatch(r"m-[0-9a-f]{32}", model_id):
        raise GalleryError(f"{model_id!r} is no model id; it is 'm-' and 32 hexadecimal digits")
    return model_id


def _filled(template: str, dim: int) -> sql.Composed:
    return sql.SQL(template).format(dim=sql.Literal(dim))  # pyright: ignore[reportArgumentType] - one of ours
