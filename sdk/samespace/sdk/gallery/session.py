"""Who talks with a gallery: an embedder, its bundle, and the admission that the service gave it. Pure: see
:mod:`~samespace.sdk.gallery.steps`.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from samespace.sdk.bundle import Bundle
from samespace.sdk.device_evidence import device_here
from samespace.sdk.embedder import Embedder
from samespace.sdk.errors import ConfigError, EmbeddingError, SpaceMismatchError
from samespace.sdk.gallery.challenges import make_challenges
from samespace.sdk.gallery.connection import Answer, Connection
from samespace.sdk.gallery.steps import Steps, Turn, Work
from samespace.sdk.gallery.wire import (
    API,
    MAX_BATCH,
    PROOF_FILES,
    Admission,
    BundleProof,
    ChallengeAnswer,
    ChallengeSet,
    FoundSpace,
    HandshakeRequest,
    Introduced,
    UnknownModelError,
    UnknownTokenError,
    Vectors,
)
from samespace.sdk.preprocess import ImageSource

__all__ = ["Content", "NewItem", "Session", "proof_of", "taken"]

T = TypeVar("T")
#: An image, or a ``(d,)`` float vector of the client's own model.
Content = ImageSource | npt.NDArray[np.floating]


@dataclass(frozen=True)
class NewItem:
    """Something to add: an image, or its vector if it was embedded already (by the client's own model).

    Attributes:
        item_id: unique in the gallery; an item of the same id is replaced.
        content: an image, or a ``(d,)`` float vector.
        metadata: flat JSON values that come back with a hit.
    """

    item_id: str
    content: Content
    metadata: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)


class Session:
    """One client's side of the conversation.

    Args:
        connection: to the service.
        embedder: makes the vectors.
        bundle: introduces a model that the gallery does not know.
        device: kind of device, for diagnoses and drift; by default as ``SAMESPACE_DEVICE`` says, else system and processor.

    Attributes:
        embedded: how many images were embedded so far, without the pictures of handshakes.
    """

    def __init__(
        self, connection: Connection, embedder: Embedder | None, bundle: Bundle | None, device: str | None = None
    ) -> None:
        self.connection = connection
        self._embedder = embedder
        self._bundle = bundle or (embedder.bundle if embedder is not None else None)
        self._device = device if device is not None else device_here() or f"{platform.system()}-{platform.machine()}".lower()
        self._admission: Admission | None = None
        self.embedded = 0

    @property
    def serving(self) -> str | None:
        """The model that the gallery is made of, as the latest handshake said; None before it."""
        return self._admission.serving_model_id if self._admission is not None else None

    @property
    def embedder(self) -> Embedder:
        """What makes the vectors.

        Raises:
            ConfigError: there is none.
        """
        if self._embedder is None:
            raise ConfigError("this gallery client has no embedder; open it with GalleryClient.open(url, bundle)")
        return self._embedder

    def found(self) -> Steps[Introduced]:
        """Found the bundle's space; see :meth:`GalleryClient.found`."""
        images, vectors = yield Work(lambda: make_challenges(self._require_bundle(), self.embedder))
        message = FoundSpace(proof=proof_of(self._require_bundle()), images=images, vectors=Vectors.of(vectors))
        return (yield from self.connection.call("POST", f"{API}/spaces", Introduced, message))

    def introduce(self) -> Steps[Introduced]:
        """Show the service the bundle's evidence; see :meth:`GalleryClient.introduce`."""
        proof: BundleProof = yield Work(lambda: proof_of(self._require_bundle()))
        return (yield from self.connection.call("POST", f"{API}/models", Introduced, proof))

    def handshake(self) -> Steps[Admission]:
        """Embed the service's challenge pictures and let it judge; see :meth:`GalleryClient.handshake`."""
        embedder = self.embedder
        request = HandshakeRequest(
            space_id=embedder.space_id,
            model_id=embedder.model_id,
            artifact_id=embedder.artifact_id,
            runtime=embedder.runtime_name,
            device=self._device,
        )
        try:
            challenge = yield from self.connection.call("POST", f"{API}/handshake", ChallengeSet, request)
        except UnknownModelError:
            if self._bundle is None:
                raise
            yield from self.introduce()
            challenge = yield from self.connection.call("POST", f"{API}/handshake", ChallengeSet, request)
        vectors = yield Work(partial(embedder.embed, challenge.images))
        answer = ChallengeAnswer(challenge=challenge.challenge, vectors=Vectors.of(vectors))
        self._admission = yield from self.connection.call("POST", f"{API}/handshake/answer", Admission, answer)
        return self._admission

    def admission(self, spent: Admission | None = None) -> Steps[Admission]:
        """The admission that there is, else a new one; ``spent`` is one that is good no more."""
        # One at a time: of a hundred searches at once, one shakes hands.
        yield Turn(taken=True)
        try:
            if self._admission is None or self._admission is spent:
                return (yield from self.handshake())
            return self._admission
        finally:
            yield Turn(taken=False)

    def call(
        self, method: str, path: str, answer: type[Answer], message: BaseModel | None = None, *, once: str | None = None
    ) -> Steps[Answer]:
        """A call with a token; a token that ran out meanwhile is renewed once."""
        fresh = self._admission is None
        admission = self._admission or (yield from self.admission())
        try:
            return (yield from self.connection.call(method, path, answer, message, token=admission.token, once=once))
        except UnknownTokenError:
            if fresh:
                raise
        admission = yield from self.admission(spent=admission)
        return (yield from self.connection.call(method, path, answer, message, token=admission.token, once=once))

    def vectors(self, contents: Sequence[Content]) -> Steps[npt.NDArray[np.float32]]:
        """Images embedded, vectors as they are: the service judges them, and so does whoever asks without this client."""
        embedder = self.embedder
        rows: list[npt.NDArray[np.floating] | None] = [_as_vector(content) for content in contents]
        images = [content for content, row in zip(contents, rows, strict=True) if row is None]
        embedded = iter((yield from self._embed(images)) if images else ())
        filled = [next(embedded) if row is None else row for row in rows]
        wrong = next((row.shape[0] for row in filled if row.shape[0] != embedder.dim), None)
        if wrong is not None:
            raise SpaceMismatchError(
                f"a vector has {wrong} dimensions, the space {embedder.space_id} has {embedder.dim}; "
                "embed with this client's model"
            )
        return np.asarray(np.stack(filled) if filled else np.empty((0, embedder.dim)), np.float32)

    def _embed(self, images: Sequence[Any]) -> Steps[npt.NDArray[np.float32]]:
        vectors: npt.NDArray[np.float32] = yield Work(partial(self.embedder.embed, images))
        self.embedded += len(images)
        return vectors

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


def taken(items: Iterator[T], count: int = MAX_BATCH) -> Steps[list[T]]:
    """Up to ``count`` more of the caller's items, which may take its time to make them."""
    return (yield Work(lambda: list(islice(items, count))))


def _as_vector(content: Any) -> npt.NDArray[np.floating] | None:
    """``content`` if it is a vector and no picture."""
    if not isinstance(content, np.ndarray) or content.dtype == np.uint8:
        return None
    if content.ndim != 1 or not np.issubdtype(content.dtype, np.floating):
        raise EmbeddingError(f"a vector must be a (d,) array of floats; got {content.dtype} {content.shape}")
    return content
