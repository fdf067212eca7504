"""What a model makes of a space's challenge pictures, rightly and with each known mistake: what a handshake is judged by.

Made once by who runs the service, from the model's whole bundle; so a device is compared with its own artifact, and a mistake
that is smaller than the artifact's rounding is still seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from samespace.cloud.gallery.registry import Challenge
from samespace.cloud.gallery.shelf import Shelf
from samespace.sdk.bundle import Bundle
from samespace.sdk.check.diagnosis.faults import Recipe, faulty_tensors, faulty_values
from samespace.sdk.check.diagnosis.garbage import has_fully_connected
from samespace.sdk.check.diagnosis.hypotheses import singles, unit_rows
from samespace.sdk.check.diagnosis.saturation import emulated_embeddings
from samespace.sdk.errors import GalleryError, SamespaceError, SignatureError
from samespace.sdk.identity import canonical_json, digest
from samespace.sdk.runtimes.base import LoadedArtifact, Runtime
from samespace.sdk.runtimes.registry import open_runtime, runtimes_for
from samespace.sdk.runtimes.tensors import as_input

__all__ = ["Reference", "ReferenceShelf", "challenge_set", "make_references"]

_KIND = "reference"
#: Of the tensors in a stored reference: what the artifact gives, and what the model's most precise artifact does.
_RIGHT, _BEST, _FACTS = "right", "best", "facts"
_MISTAKE = "mistake:"
#: Coordinates of an embedding that differ by less are rounding.
_SATURATES = 0.01
#: The most precise first.
_PRECISIONS = ("fp32", "fp16", "int8", "int8-dynamic", "palette6", "palette4")


@dataclass(frozen=True, eq=False)
class Reference:
    """An artifact's embeddings of n challenge pictures, in the order of their names.

    Attributes:
        artifact_id: which artifact.
        challenges: digest of the pictures, see :func:`challenge_set`.
        right: ``(n, d)`` float32 unit-norm, of this artifact.
        best: ``(n, d)`` float32 unit-norm, of the most precise artifact of the same model.
        mistakes: name -> ``(m, d)`` float32 unit-norm, of this artifact with a mistake, for the first m <= n pictures.
        fully_connected: whether it has the operator that old TFLite runtimes misread when it is quantised.
    """

    artifact_id: str
    challenges: str
    right: npt.NDArray[np.float32] = field(repr=False)
    best: npt.NDArray[np.float32] = field(repr=False)
    mistakes: Mapping[str, npt.NDArray[np.float32]] = field(repr=False)
    fully_connected: bool = False

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        facts = {"artifact_id": self.artifact_id, "challenges": self.challenges, "fully_connected": self.fully_connected}
        tensors = {f"{_MISTAKE}{name}": rows for name, rows in self.mistakes.items()}
        tensors |= {_RIGHT: self.right, _BEST: self.best, _FACTS: np.frombuffer(canonical_json(facts), np.uint8)}
        return save({name: np.ascontiguousarray(rows) for name, rows in tensors.items()})

    @classmethod
    def from_bytes(cls, content: bytes) -> Reference:
        """The reverse.

        Raises:
            GalleryError: not such a file.
        """
        try:
            tensors = load(content)
            facts = json.loads(tensors.pop(_FACTS).tobytes())
            right, best = tensors.pop(_RIGHT), tensors.pop(_BEST)
            mistakes = {name.removeprefix(_MISTAKE): rows for name, rows in tensors.items()}
            return cls(right=right, best=best, mistakes=mistakes, **facts)
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise GalleryError(f"a stored reference cannot be read ({error}); make it again from its bundle") from None


class ReferenceShelf:
    """The references that a service has, by artifact."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._read: dict[str, Reference] = {}

    def put(self, reference: Reference) -> None:
        """Keep a reference; an older one of the artifact is replaced."""
        self._shelf.put(_KIND, reference.artifact_id, reference.to_bytes())
        self._read.pop(reference.artifact_id, None)

    def get(self, artifact_id: str, challenges: str) -> Reference | None:
        """The artifact's reference for just these challenge pictures."""
        known = self._read.get(artifact_id)
        if known is None or known.challenges != challenges:
            content = self._shelf.get(_KIND, artifact_id)
            known = None if content is None else Reference.from_bytes(content)
            if known is not None:
                self._read[artifact_id] = known
        return known if known is not None and known.challenges == challenges else None


def challenge_set(challenges: Sequence[Challenge]) -> str:
    """What identifies a set of challenge pictures: a digest of their names and bytes."""
    return digest(canonical_json([[challenge.name, digest(challenge.image)] for challenge in challenges]))


def make_references(bundle: Bundle, challenges: Sequence[Challenge]) -> tuple[Reference, ...]:
    """Run every artifact of a bundle that runs here on the challenge pictures, rightly and with each known mistake.

    An artifact that does not run here is judged by the most precise one that does.

    Raises:
        SignatureError: the bundle was not signed by somebody whom we trust: its artifacts are not run here.
        GalleryError: none of its artifacts runs on this machine.
    """
    if not bundle.trusted:
        raise SignatureError(f"{bundle.path}: a reference is made only of a bundle whose signer is trusted (samespace keys)")
    images = [challenge.image for challenge in challenges]
    preprocess, chosen = bundle.manifest.model.preprocess, challenge_set(challenges)
    recipes = [Recipe.of(name) for name in singles()]
    shown = [faulty_tensors(preprocess, image, [Recipe(), *recipes]) for image in images]
    right = np.stack([tensors[0] for tensors in shown])
    faulty = {
        name: faulty_values(preprocess, np.stack([tensors[place] for tensors in shown]), recipe.values)
        for place, (name, recipe) in enumerate(zip(singles(), recipes, strict=True), start=1)
    }
    made: list[Reference] = []
    order = sorted(bundle.manifest.artifacts, key=lambda artifact: _PRECISIONS.index(artifact.precision))
    for artifact in order:
        loaded = bundle.artifact(artifact.path)
        name = next(iter(runtimes_for(artifact.format)), None)
        try:
            if name is None:
                continue
            with open_runtime(loaded, name) as runtime:
                rows = unit_rows(runtime.run(right))
                mistakes = {fault: _mistaken(runtime, fault, values) for fault, values in faulty.items()}
        except SamespaceError:
            continue  # not to run here says nothing about devices
        if not np.isfinite(rows).all():
            continue
        kept = {fault: mistaken for fault, mistaken in mistakes.items() if mistaken is not None}
        kept |= _saturated(loaded, right)
        best = made[0].right if made else rows
        full = artifact.format == "tflite" and has_fully_connected(loaded.single_file)
        made.append(Reference(artifact.artifact_id, chosen, rows, best, kept, full))
    if not made:
        raise GalleryError(f"{bundle.path}: none of its artifacts runs on this machine; install a runtime for one of them")
    done = {reference.artifact_id for reference in made}
    others = [a for a in order if a.artifact_id not in done]
    return (
        *made,
        *(
            Reference(a.artifact_id, chosen, made[0].right, made[0].right, made[0].mistakes, a.format == "tflite")
            for a in others
        ),
    )


def _mistaken(runtime: Runtime, fault: str, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32] | None:
    """What these values give; None where the artifact's input cannot take them, or nothing comes out."""
    if values.min() >= -0.5 and values.max() <= 255.5 and fault != "range_01":
        rows = runtime.run(np.rint(values).clip(0, 255).astype(np.uint8))
    elif runtime.artifact.spec.input.dtype == "float32":
        step = runtime.options.batch_size if runtime.artifact.spec.input.dynamic_batch else 1
        # Not through run(), which takes bytes: an app may feed any float.
        parts = [runtime._infer(values[i : i + step]) for i in range(0, len(values), step)]  # type: ignore[arg-type]
        rows = np.concatenate(parts)
    else:
        return None
    return unit_rows(rows) if np.isfinite(rows).all() and np.abs(rows).max() < 1e18 else None


def _saturated(loaded: LoadedArtifact, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
    if loaded.spec.precision != "int8" or loaded.spec.format != "onnx":
        return {}
    fed = as_input(images, loaded.spec.input)
    saturated, exact = (
        emulated_embeddings(loaded.single_file, loaded.spec.input.name, fed, saturating=saturating)
        for saturating in (True, False)
    )
    # Where nothing saturates, it is no hypothesis.
    if saturated is None or exact is None or np.abs(saturated - exact).max() <= _SATURATES:
        return {}
    return {"int8_saturation": saturated}
