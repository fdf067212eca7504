"""The client of a gallery: embed on the device, shake hands, search."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ValidationError

from samespace.sdk.bundle import Bundle
from samespace.sdk.embedder import Embedder
from samespace.sdk.errors import ConfigError, EmbeddingError, SpaceMismatchError
from samespace.sdk.gallery.challenges import make_challenges
from samespace.sdk.gallery.connection import Answer, Connection, first_complaint
from samespace.sdk.gallery.retry import RetryPolicy
from samespace.sdk.gallery.wire import (
    API,
    MAX_BATCH,
    PROOF_FILES,
    Added,
    Admission,
    BundleProof,
    ChallengeAnswer,
    ChallengeSet,
    FoundSpace,
    GalleryHealth,
    HandshakeRequest,
    Ids,
    Introduced,
    Item,
    ItemBatch,
    MissingItemError,
    SearchHit,
    SearchRequest,
    SearchResult,
    SignedRecord,
    UnknownModelError,
    UnknownTokenError,
    Vectors,
)
from samespace.sdk.identity import CompatibilityRecord
from samespace.sdk.preprocess import ImageSource

__all__ = ["GalleryClient", "NewItem", "proof_of"]


@dataclass(frozen=True)
class NewItem:
    """Something to add: an image, or its vector if it was embedded already (by the client's own model).

    Attributes:
        item_id: unique in the gallery; an item of the same id is replaced.
        content: an image, or a ``(d,)`` float vector.
        metadata: flat JSON values that come back with a hit.
    """

    item_id: str
    content: ImageSource | npt.NDArray[np.floating]
    metadata: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)


class GalleryClient:
    """Talks to one gallery service for one embedder. A context manager; shakes hands by itself before the first search.

    Args:
        url: of the service, like ``http://host:8765``.
        embedder: makes the vectors; without one, only :meth:`health` and :meth:`put_record` work.
        bundle: with it, the client introduces a model that the gallery does not know; by default the one that the embedder was
            opened from.
        transport: instead of the network, e.g. to an in-process service.
        timeout: seconds for each request.
        retry: how often a request is repeated that nobody answered.

    Every method raises :class:`~samespace.sdk.errors.GalleryUnavailableError` when nobody answers, and the service's
    own errors as if they had been raised here.
    """

    def __init__(
        self,
        url: str,
        embedder: Embedder | None = None,
        *,
        bundle: Bundle | None = None,
        transport: httpx.BaseTransport | None = None,
        timeout: float = 30.0,
        retry: RetryPolicy | None = None,
    ) -> None:
        self._embedder = embedder
        self._bundle = bundle or (embedder.bundle if embedder is not None else None)
        self._connection = Connection(url, transport=transport, timeout=timeout, retry=retry)
        self._admission: Admission | None = None
        self._owned: Embedder | None = None

    @classmethod
    def open(
        cls,
        url: str,
        bundle: Bundle | Path | str,
        *,
        runtime: str | None = None,
        allow_unsigned: bool = False,
        transport: httpx.BaseTransport | None = None,
        timeout: float = 30.0,
        retry: RetryPolicy | None = None,
    ) -> Self:
        """A client with an embedder of its own, from a bundle; arguments as for :meth:`Embedder.open` and the constructor."""
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle, allow_unsigned=allow_unsigned)
        client = cls(url, bundle=opened, transport=transport, timeout=timeout, retry=retry)
        client._embedder = client._owned = Embedder.open(opened, runtime)
        return client

    @property
    def url(self) -> str:
        """Of the service, without a slash at the end."""
        return self._connection.url

    @property
    def embedder(self) -> Embedder:
        """What makes this client's vectors.

        Raises:
            ConfigError: it has none.
        """
        if self._embedder is None:
            raise ConfigError("this gallery client has no embedder; open it with GalleryClient.open(url, bundle)")
        return self._embedder

    def health(self) -> GalleryHealth:
        """What the service holds."""
        return self._connection.call("GET", f"{API}/health", GalleryHealth)

    def found(self) -> Introduced:
        """Found the bundle's space with its cloud model; does nothing when the gallery has it already.

        Raises:
            SignatureError: the service does not trust the bundle's signer.
            SpaceMismatchError: the bundle's model did not found its space.
        """
        images, vectors = make_challenges(self._require_bundle(), self.embedder)
        message = FoundSpace(proof=proof_of(self._require_bundle()), images=images, vectors=Vectors.of(vectors))
        return self._connection.call("POST", f"{API}/spaces", Introduced, message)

    def introduce(self) -> Introduced:
        """Show the service the bundle's signed evidence; it measures the compatibility from it and keeps the record.

        Raises:
            SignatureError: the service does not trust the bundle's signer.
            SpaceMismatchError: the gallery has no such space.
        """
        return self._connection.call("POST", f"{API}/models", Introduced, proof_of(self._require_bundle()))

    def put_record(self, record: SignedRecord) -> CompatibilityRecord:
        """Give the service a compatibility record that was measured elsewhere."""
        return self._connection.call("POST", f"{API}/records", CompatibilityRecord, record)

    def handshake(self) -> Admission:
        """Embed the service's challenge pictures and let it judge.

        Raises:
            HandshakeRefusedError: the embeddings do not fit the gallery; says by how much and, where it can be told,
                why.
            SpaceMismatchError: another space, or no passing compatibility record.
        """
        embedder = self.embedder
        request = HandshakeRequest(
            space_id=embedder.space_id,
            model_id=embedder.model_id,
            artifact_id=embedder.artifact_id,
            runtime=embedder.runtime_name,
        )
        try:
            challenge = self._connection.call("POST", f"{API}/handshake", ChallengeSet, request)
        except UnknownModelError:
            if self._bundle is None:
                raise
            self.introduce()
            challenge = self._connection.call("POST", f"{API}/handshake", ChallengeSet, request)
        answer = ChallengeAnswer(challenge=challenge.challenge, vectors=Vectors.of(embedder.embed(challenge.images)))
        self._admission = self._connection.call("POST", f"{API}/handshake/answer", Admission, answer)
        return self._admission

    def search(self, query: ImageSource | npt.NDArray[np.floating], k: int = 10, *, exact: bool = False) -> list[SearchHit]:
        """The ``k`` nearest items for one image, or for one ``(d,)`` float vector of this client's model."""
        return self.search_batch([query], k, exact=exact)[0]

    def search_batch(
        self, queries: Iterable[ImageSource | npt.NDArray[np.floating]], k: int = 10, *, exact: bool = False
    ) -> list[list[SearchHit]]:
        """The ``k`` nearest items, nearest first, for each of the queries.

        Raises:
            HandshakeRefusedError, SpaceMismatchError: as :meth:`handshake`.
            EmbeddingError, ImageError: a query that cannot be embedded, or is no unit-norm vector.
        """
        embedder, found = self.embedder, []
        for batch in _batches(queries):
            request = SearchRequest(
                space_id=embedder.space_id,
                model_id=embedder.model_id,
                vectors=Vectors.of(self._vectors(batch)),
                k=_checked_k(k),
                exact=exact,
            )
            result = self._admitted("POST", f"{API}/search", SearchResult, request)
            found.extend(list(hits) for hits in result.hits)
        return found

    def add(self, items: Iterable[NewItem]) -> tuple[str, ...]:
        """Embed what is not embedded yet and keep it; an id that is already there is replaced.

        Returns:
            The ids that the service acknowledged: they are on its disk.

        Raises:
            SpaceMismatchError: this client's model is not the one that the gallery is made of.
        """
        embedder, acknowledged = self.embedder, []
        for batch in _batches(items):
            try:
                message = ItemBatch(
                    space_id=embedder.space_id,
                    model_id=embedder.model_id,
                    ids=tuple(item.item_id for item in batch),
                    metadata=tuple(dict(item.metadata) for item in batch),
                    vectors=Vectors.of(self._vectors([item.content for item in batch])),
                )
            except ValidationError as error:
                raise ConfigError(f"an item cannot be added: {first_complaint(error)}") from None
            acknowledged.extend(self._admitted("POST", f"{API}/items", Added, message).acknowledged)
        return tuple(acknowledged)

    def known(self, ids: Iterable[str]) -> set[str]:
        """Which of the ids the gallery holds already."""
        found: set[str] = set()
        for batch in _batches(ids):
            found.update(self._admitted("POST", f"{API}/items/known", Ids, Ids(ids=tuple(batch))).ids)
        return found

    def get(self, item_id: str) -> Item | None:
        """One item with its vector, or None."""
        try:
            return self._admitted("GET", f"{API}/items?item_id={quote(item_id, safe='')}", Item)
        except MissingItemError:
            return None

    def delete(self, item_id: str) -> bool:
        """Forget an item; False when it was not there."""
        try:
            self._admitted("DELETE", f"{API}/items?item_id={quote(item_id, safe='')}", Ids)
        except MissingItemError:
            return False
        return True

    def close(self) -> None:
        """Close the connections, and the embedder if :meth:`open` made it."""
        self._connection.close()
        if self._owned is not None:
            self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _vectors(self, contents: Sequence[ImageSource | npt.NDArray[np.floating]]) -> npt.NDArray[np.float32]:
        """Images embedded, vectors as they are: the service judges them, and so does whoever asks without this
        client.
        """
        embedder = self.embedder
        rows: list[npt.NDArray[np.floating] | None] = [_as_vector(content) for content in contents]
        images = [content for content, row in zip(contents, rows, strict=True) if row is None]
        embedded = iter(embedder.embed(images) if images else ())  # type: ignore[arg-type]
        filled = [next(embedded) if row is None else row for row in rows]
        wrong = next((row.shape[0] for row in filled if row.shape[0] != embedder.dim), None)
        if wrong is not None:
            raise SpaceMismatchError(
                f"a vector has {wrong} dimensions, the space {embedder.space_id} has {embedder.dim}; "
                "embed with this client's model"
            )
        return np.asarray(np.stack(filled) if filled else np.empty((0, embedder.dim)), np.float32)

    def _admitted(self, method: str, path: str, answer: type[Answer], message: BaseModel | None = None) -> Answer:
        """A call with a token; a token that ran out meanwhile is renewed once."""
        fresh = self._admission is None
        admission = self._admission or self.handshake()
        try:
            return self._connection.call(method, path, answer, message, admission.token)
        except UnknownTokenError:
            if fresh:
                raise
            return self._connection.call(method, path, answer, message, self.handshake().token)

    def _require_bundle(self) -> Bundle:
        if self._bundle is None:
            raise ConfigError("this gallery client has no bundle; open it with GalleryClient.open(url, bundle)")
        return self._bundle


def proof_of(bundle: Bundle) -> BundleProof:
    """The part of a bundle that a gallery must see to know its model."""
    listed = {entry.path for entry in bundle.manifest.files}
    return BundleProof(
        manifest=bundle.seal.manifest,
        signature=bundle.seal.signature,
        files={path: bundle.read(path) for path in PROOF_FILES if path in listed},
    )


def _as_vector(content: Any) -> npt.NDArray[np.floating] | None:
    """``content`` if it is a vector and no picture."""
    if not isinstance(content, np.ndarray) or content.dtype == np.uint8:
        return None
    if content.ndim != 1 or not np.issubdtype(content.dtype, np.floating):
        raise EmbeddingError(f"a vector must be a (d,) array of floats; got {content.dtype} {content.shape}")
    return content


def _checked_k(k: int) -> int:
    if not 1 <= k <= 1000:
        raise ConfigError(f"k={k}: ask for 1 to 1000 hits")
    return k


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, MAX_BATCH)):
        yield batch
