"""The handshake: pictures out, embeddings in, a verdict and a token. Each challenge is answered once."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt

from samespace.cloud.gallery.handshake import HandshakePolicy, Judgement, judge_by_record, judge_same_model
from samespace.cloud.gallery.membership import MIN_CHALLENGES, Claim, Membership
from samespace.cloud.gallery.references import ReferenceShelf, challenge_set
from samespace.cloud.gallery.registry import Challenge, Registry
from samespace.cloud.gallery.shelf import Shelf
from samespace.cloud.gallery.tokens import TokenMaker
from samespace.cloud.gallery.vectors import checked_vectors
from samespace.cloud.gallery.verdict import diagnosed_facts, judge_by_reference
from samespace.sdk.check.diagnosis.catalogue import CAUSES
from samespace.sdk.errors import EmbeddingError, GalleryError, HandshakeRefusedError
from samespace.sdk.gallery.wire import UnknownTokenError
from samespace.sdk.identity import digest

__all__ = ["Admitted", "Reception"]

#: A client that did not hear the answer repeats its request; so long, in seconds, that is no replay.
_REPEATED = 30.0
#: Answered challenges are remembered in periods of so many seconds, and forgotten by period; longer than any challenge lives.
_PERIOD = 900.0


@dataclass(frozen=True)
class Admitted:
    """A passed handshake; or one that was not, where the policy lets it in with a warning."""

    token: str
    seconds: float
    claim: Claim
    serving_model_id: str
    judgement: Judgement
    warnings: tuple[str, ...] = ()


class Reception:
    """Holds handshakes. Safe to share between threads.

    Args:
        registry: has the challenge pictures.
        members: who may be compared with whom.
        shelf: has the references, and remembers which challenges were answered.
        tokens: made here, believed elsewhere.
        policy: how handshakes are held.
        clock: seconds; for tests.
    """

    def __init__(
        self,
        registry: Registry,
        members: Membership,
        shelf: Shelf,
        tokens: TokenMaker,
        policy: HandshakePolicy,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.references = ReferenceShelf(shelf)
        self._registry, self._members, self._shelf = registry, members, shelf
        self._tokens, self._policy, self._clock = tokens, policy, clock
        self._chance = random.SystemRandom()

    def challenge(self, claim: Claim) -> tuple[str, tuple[bytes, ...]]:
        """An opaque challenge and its pictures."""
        self._members.member(claim)
        # In an upgrade there are two models that it may be compared with: the one that its searches begin with.
        serving = self._members.searchable(claim)[0]
        chosen = self._chance.sample(challenges := self.pictures(serving), min(self._policy.pictures, len(challenges)))
        content = {
            "claim": asdict(claim),
            "serving": serving,
            "names": [challenge.name for challenge in chosen],
            "nonce": secrets.token_hex(16),
        }
        return self._tokens.make("challenge", content, self._policy.answer_seconds), tuple(c.image for c in chosen)

    def pictures(self, serving: str) -> tuple[Challenge, ...]:
        """The challenge pictures of the gallery's model.

        Raises:
            GalleryError: there are too few.
        """
        challenges = self._registry.challenges(serving)
        if len(challenges) < MIN_CHALLENGES:
            raise GalleryError(f"the model {serving} has no challenge pictures in this registry; found the space again")
        return challenges

    def answer(self, challenge: str, embeddings: npt.NDArray[np.floating], tenant: str | None = None) -> Admitted:
        """Judge ``(n, d)`` embeddings of the challenge's pictures; ``tenant`` is that of the key that came with them.

        Raises:
            HandshakeRefusedError: they do not fit; says how far off they are and, where it can be told, why.
            UnknownTokenError: not a challenge of this gallery for that tenant, or one that was answered already.
            EmbeddingError, SpaceMismatchError: they are no embeddings of the space.
        """
        content = self._tokens.read("challenge", challenge)
        claim, serving, names = Claim(**content["claim"]), content["serving"], content["names"]
        if tenant is not None and tenant != claim.tenant:
            raise UnknownTokenError("this challenge was given to another key's tenant; shake hands with your own key")
        self._once(content["nonce"], challenge, embeddings)
        space, model = self._members.space(claim.space_id), self._members.member(claim)
        artifact = f"the artifact {claim.artifact_id[:12]} of {claim.model_id} in {claim.runtime}"
        try:
            answer = checked_vectors(embeddings, space.dim, space.space_id, lambda row: f"answer {row}")
        except EmbeddingError as error:
            causes = diagnosed_facts(embeddings)
            raise _diagnosed(EmbeddingError(f"{error}. {_meaning(causes)}" if causes else str(error)), causes) from None
        challenges = self._registry.challenges(serving)
        place = {entry.name: index for index, entry in enumerate(challenges)}
        if len(answer) != len(names) or not set(names) <= place.keys():
            raise HandshakeRefusedError(
                f"the challenge has {len(names)} pictures, the answer {len(answer)} embeddings; embed each "
                "picture of the challenge, in its order"
            )
        places = [place[name] for name in names]
        expected = np.stack([challenges[index].embedding for index in places])
        record = self._members.comparable(claim, serving)
        reference = self.references.get(claim.artifact_id, challenge_set(challenges))
        known = model.artifact(claim.artifact_id)
        precision = known.precision if known else "fp32"
        if reference is not None:
            judgement = judge_by_reference(answer, places, reference, expected, model.gates, precision)
        elif record is None:
            judgement = judge_same_model(answer, expected, model.gates, precision)
        else:
            judgement = judge_by_record(answer, expected, record.report, self._policy)
        if not judgement.accepted:
            text = (
                f"handshake refused for {artifact}: {judgement.reason}. Run 'samespace check' on the device; it names the fault"
            )
            if self._policy.unverified == "refuse":
                raise _diagnosed(HandshakeRefusedError(text), judgement.causes)
            claim = replace(claim, verified=False)
        token = self._tokens.make("admission", {"claim": asdict(claim)}, self._policy.token_seconds)
        warnings = () if judgement.accepted else (f"not verified: {judgement.reason}",)
        return Admitted(token, self._policy.token_seconds, claim, self._members.serving(claim.space_id), judgement, warnings)

    def _once(self, nonce: str, challenge: str, embeddings: npt.NDArray[np.floating]) -> None:
        """Refuse a second answer, but for the same one a moment later."""
        now = self._clock()
        period = int(now // _PERIOD)
        mark = f"{digest(challenge.encode() + np.ascontiguousarray(embeddings).tobytes())} {now:.3f}".encode()
        there = self._shelf.get(_answered(period - 1), nonce) or self._shelf.add(_answered(period), nonce, mark)
        if there is None:
            if self._chance.random() < 0.01:
                self._shelf.drop(_answered(period - 2))
            return
        before, _, when = there.decode().partition(" ")
        if before != mark.decode().partition(" ")[0] or now - float(when) > _REPEATED:
            raise UnknownTokenError("this challenge was answered already, and each is good for one answer; shake hands again")


def _answered(period: int) -> str:
    return f"answered/{period}"


def _meaning(causes: tuple[str, ...]) -> str:
    return "; ".join(f"{name!r}: {CAUSES[name].summary}; mend: {CAUSES[name].mend}" for name in causes)


def _diagnosed(
    error: EmbeddingError | HandshakeRefusedError, causes: tuple[str, ...]
) -> EmbeddingError | HandshakeRefusedError:
    error.causes = causes  # type: ignore[union-attr] - read by the service, for the problem's "diagnosis"
    return error
