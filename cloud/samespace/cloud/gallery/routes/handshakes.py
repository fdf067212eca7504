"""Shaking hands: pictures that no bundle contains, the device's embeddings of them, and a token or a diagnosis."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from samespace.cloud.gallery.membership import Claim
from samespace.cloud.gallery.routes.dependencies import GalleryOf, MetricsOf, ReaderOf
from samespace.sdk.gallery.wire import API, Admission, ChallengeAnswer, ChallengeSet, HandshakeRequest

router = APIRouter(prefix=API, tags=["handshake"])


@router.post("/handshake")
def handshake(message: HandshakeRequest, gallery: GalleryOf, caller: ReaderOf) -> ChallengeSet:
    """Ask for pictures to embed."""
    challenge, images = gallery.challenge(Claim(**message.model_dump(), tenant=caller.tenant))
    return ChallengeSet(challenge=challenge, images=images)


async def _understands(message: ChallengeAnswer, request: Request, gallery: GalleryOf) -> ChallengeAnswer:
    """Old clients take no field that they do not know: a diagnosis is for who told its device."""
    request.state.diagnoses = gallery.told_device(message.challenge)
    return message


@router.post("/handshake/answer", response_model_exclude_defaults=True)
def answer_handshake(
    message: Annotated[ChallengeAnswer, Depends(_understands)], gallery: GalleryOf, metrics: MetricsOf, caller: ReaderOf
) -> Admission:
    """Show the embeddings; a token if they fit the gallery, else the reason why not."""
    with metrics.handshake():
        admitted = gallery.answer(message.challenge, message.vectors.array(), caller.tenant)
    return Admission(
        token=admitted.token,
        expires_in=admitted.seconds,
        space_id=admitted.claim.space_id,
        model_id=admitted.claim.model_id,
        serving_model_id=admitted.serving_model_id,
        measured=admitted.judgement.measured,
        warnings=admitted.warnings,
    )
