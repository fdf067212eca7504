"""The registry in PostgreSQL."""

from __future__ import annotations

from typing import Any

import numpy as np
from psycopg.types.json import Jsonb

from samespace.cloud.gallery.postgres import Database
from samespace.cloud.gallery.registry import Challenge, RegisteredModel, RegisteredRecord, merged
from samespace.sdk.identity import SpaceRecord, canonical_json, digest

__all__ = ["PostgresRegistry"]


class PostgresRegistry:
    """Implements :class:`~samespace.cloud.gallery.registry.Registry`; each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put_space(self, space: SpaceRecord) -> None:
        # The id is a hash of the record: what is there already is the same.
        self._write(
            "INSERT INTO spaces (space_id, record) VALUES (%s, %s) ON CONFLICT DO NOTHING",
            (space.space_id, Jsonb(space.model_dump(mode="json"))),
        )

    def space(self, space_id: str) -> SpaceRecord | None:
        rows = self._read("SELECT record FROM spaces WHERE space_id = %s", (space_id,))
        return SpaceRecord.model_validate(rows[0][0]) if rows else None

    def spaces(self) -> tuple[SpaceRecord, ...]:
        return tuple(SpaceRecord.model_validate(row[0]) for row in self._read("SELECT record FROM spaces ORDER BY space_id"))

    def put_model(self, model: RegisteredModel) -> None:
        with self._database.transaction() as connection:
            # Two services may register two exports of one model at once: neither's artifacts may get lost.
            connection.execute("LOCK TABLE models IN SHARE ROW EXCLUSIVE MODE")
            row = connection.execute("SELECT entry FROM models WHERE model_id = %s", (model.model_id,)).fetchone()
            entry = merged(RegisteredModel.model_validate(row[0]) if row else None, model)
            connection.execute(
                "INSERT INTO models (model_id, space_id, entry) VALUES (%s, %s, %s) "
                "ON CONFLICT (model_id) DO UPDATE SET space_id = EXCLUDED.space_id, entry = EXCLUDED.entry",
                (model.model_id, model.space_id, Jsonb(entry.model_dump(mode="json"))),
            )

    def model(self, model_id: str) -> RegisteredModel | None:
        rows = self._read("SELECT entry FROM models WHERE model_id = %s", (model_id,))
        return RegisteredModel.model_validate(rows[0][0]) if rows else None

    def models(self, space_id: str) -> tuple[RegisteredModel, ...]:
        rows = self._read("SELECT entry FROM models WHERE space_id = %s ORDER BY model_id", (space_id,))
        return tuple(RegisteredModel.model_validate(row[0]) for row in rows)

    def put_record(self, entry: RegisteredRecord) -> None:
        record, content = entry.record, entry.model_dump(mode="json")
        self._write(
            "INSERT INTO records (query_id, gallery_model_id, measured_at, digest, entry) VALUES (%s, %s, %s, %s, %s) "
            "ON CONFLICT (digest) DO NOTHING",
            (record.query_id, record.gallery_model_id, record.measured_at, digest(canonical_json(content)), Jsonb(content)),
        )

    def record(self, query_id: str, gallery_model_id: str) -> RegisteredRecord | None:
        rows = self._read(
            "SELECT entry FROM records WHERE query_id = %s AND gallery_model_id = %s "
            "ORDER BY measured_at DESC, number DESC LIMIT 1",
            (query_id, gallery_model_id),
        )
        return RegisteredRecord.model_validate(rows[0][0]) if rows else None

    def set_alias(self, space_id: str, name: str, model_id: str) -> None:
        self._write(
            "INSERT INTO aliases (space_id, name, model_id) VALUES (%s, %s, %s) "
            "ON CONFLICT (space_id, name) DO UPDATE SET model_id = EXCLUDED.model_id",
            (space_id, name, model_id),
        )

    def alias(self, space_id: str, name: str) -> str | None:
        rows = self._read("SELECT model_id FROM aliases WHERE space_id = %s AND name = %s", (space_id, name))
        return rows[0][0] if rows else None

    def put_challenges(self, model_id: str, challenges: tuple[Challenge, ...]) -> None:
        with self._database.transaction() as connection, connection.cursor() as cursor:
            cursor.execute("DELETE FROM challenges WHERE model_id = %s", (model_id,))
            cursor.executemany(
                "INSERT INTO challenges (model_id, name, image, embedding) VALUES (%s, %s, %s, %b)",
                [(model_id, challenge.name, challenge.image, challenge.embedding) for challenge in challenges],
            )

    def challenges(self, model_id: str) -> tuple[Challenge, ...]:
        rows = self._read("SELECT name, image, embedding FROM challenges WHERE model_id = %s ORDER BY name", (model_id,))
        return tuple(Challenge(name, bytes(image), np.asarray(vector.to_numpy())) for name, image, vector in rows)

    def ping(self) -> None:
        self._read("SELECT 1")

    def close(self) -> None:
        self._database.close()

    def _read(self, statement: Any, arguments: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with self._database.transaction() as connection:
            return connection.cursor(binary=True).execute(statement, arguments).fetchall()

    def _write(self, statement: Any, arguments: tuple[Any, ...]) -> None:
        with self._database.transaction() as connection:
            connection.execute(statement, arguments)
