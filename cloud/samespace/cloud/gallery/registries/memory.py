"""A registry in this process's memory: for tests, demos and as the reference of the SQL one."""

from __future__ import annotations

import threading

from samespace.cloud.gallery.registry import Challenge, RegisteredModel, RegisteredRecord, merged
from samespace.sdk.identity import SpaceRecord

__all__ = ["MemoryRegistry"]


class MemoryRegistry:
    """Implements :class:`~samespace.cloud.gallery.registry.Registry` with dictionaries; safe to share between
    threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spaces: dict[str, SpaceRecord] = {}
        self._models: dict[str, RegisteredModel] = {}
        self._records: dict[tuple[str, str], list[RegisteredRecord]] = {}
        self._aliases: dict[tuple[str, str], str] = {}
        self._challenges: dict[str, tuple[Challenge, ...]] = {}

    def put_space(self, space: SpaceRecord) -> None:
        with self._lock:
            self._spaces[space.space_id] = space

    def space(self, space_id: str) -> SpaceRecord | None:
        return self._spaces.get(space_id)

    def spaces(self) -> tuple[SpaceRecord, ...]:
        with self._lock:
            return tuple(self._spaces[space_id] for space_id in sorted(self._spaces))

    def put_model(self, model: RegisteredModel) -> None:
        with self._lock:
            self._models[model.model_id] = merged(self._models.get(model.model_id), model)

    def model(self, model_id: str) -> RegisteredModel | None:
        return self._models.get(model_id)

    def models(self, space_id: str) -> tuple[RegisteredModel, ...]:
        with self._lock:
            members = (self._models[model_id] for model_id in sorted(self._models))
            return tuple(model for model in members if model.space_id == space_id)

    def put_record(self, entry: RegisteredRecord) -> None:
        with self._lock:
            entries = self._records.setdefault((entry.record.query_id, entry.record.gallery_model_id), [])
            if entry not in entries:
                entries.append(entry)

    def record(self, query_id: str, gallery_model_id: str) -> RegisteredRecord | None:
        with self._lock:
            entries = self._records.get((query_id, gallery_model_id), [])
            # The last of equals: enumerate breaks ties in favour of what was registered later.
            return max(enumerate(entries), key=lambda pair: (pair[1].record.measured_at, pair[0]))[1] if entries else None

    def set_alias(self, space_id: str, name: str, model_id: str) -> None:
        with self._lock:
            self._aliases[space_id, name] = model_id

    def alias(self, space_id: str, name: str) -> str | None:
        return self._aliases.get((space_id, name))

    def put_challenges(self, model_id: str, challenges: tuple[Challenge, ...]) -> None:
        with self._lock:
            self._challenges[model_id] = tuple(sorted(challenges, key=lambda challenge: challenge.name))

    def challenges(self, model_id: str) -> tuple[Challenge, ...]:
        return self._challenges.get(model_id, ())

    def ping(self) -> None:
        """Memory always answers."""

    def close(self) -> None:
        """Nothing to give back."""
