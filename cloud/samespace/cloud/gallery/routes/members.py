"""Spaces, their models, compatibility records and aliases: what all tenants share."""

from __future__ import annotations

from fastapi import APIRouter

from samespace.cloud.gallery.evidence import verified_evidence
from samespace.cloud.gallery.membership import Introduction
from samespace.cloud.gallery.pictures import checked_pictures
from samespace.cloud.gallery.routes.dependencies import GalleryOf, OperatorOf, PathText, ReaderOf, SettingsOf, Text
from samespace.cloud.gallery.signatures import verified_record
from samespace.sdk.gallery.wire import API, BundleProof, FoundSpace, Introduced, SignedRecord
from samespace.sdk.gallery.wire_admin import Aliases, AliasRequest
from samespace.sdk.gallery.wire_search import RecordAnswer
from samespace.sdk.identity import CompatibilityRecord

router = APIRouter(prefix=API, tags=["members"])


@router.post("/spaces")
def found_space(message: FoundSpace, gallery: GalleryOf, settings: SettingsOf, caller: OperatorOf) -> Introduced:
    """Found a space by its cloud model's signed bundle; nothing changes when it is there already."""
    evidence = verified_evidence(message.proof, settings.trust, allow_unsigned=settings.allow_unsigned)
    return _introduced(gallery.found(evidence, checked_pictures(message.images), message.vectors.array()))


@router.post("/models")
def introduce_model(proof: BundleProof, gallery: GalleryOf, settings: SettingsOf, caller: ReaderOf) -> Introduced:
    """Make a model a member of its space; its compatibility record is measured from the signed evidence."""
    evidence = verified_evidence(proof, settings.trust, allow_unsigned=settings.allow_unsigned)
    return _introduced(gallery.members.introduce(evidence))


@router.post("/records")
def register_record(message: SignedRecord, gallery: GalleryOf, settings: SettingsOf, caller: OperatorOf) -> CompatibilityRecord:
    """Keep a compatibility record that was measured elsewhere and is signed by a trusted key; the newest of a pair counts."""
    signer = verified_record(message, settings.trust, allow_unsigned=settings.allow_unsigned)
    gallery.members.put_record(message.record, signer)
    return message.record


@router.get("/records")
def get_record(query_id: Text, gallery_model_id: Text, gallery: GalleryOf, caller: ReaderOf) -> RecordAnswer:
    """The record that counts for a pair (of a model or an artifact, and the gallery's model), and who signed it."""
    entry = gallery.record(query_id, gallery_model_id)
    return RecordAnswer(record=entry.record if entry else None, signer=entry.signer if entry else None)


@router.get("/spaces/{space_id}/aliases")
def get_aliases(space_id: PathText, gallery: GalleryOf, caller: ReaderOf) -> Aliases:
    """What the names of a space mean: ``serving`` is the model whose vectors answer searches."""
    return Aliases(space_id=space_id, aliases=gallery.aliases(space_id))


@router.put("/spaces/{space_id}/aliases/{name}")
def put_alias(space_id: PathText, name: PathText, message: AliasRequest, gallery: GalleryOf, caller: OperatorOf) -> Aliases:
    """Let a name mean a model from now on; one write, so nobody ever finds half of two galleries."""
    gallery.set_alias(space_id, name, message.model_id)
    return Aliases(space_id=space_id, aliases=gallery.aliases(space_id))


def _introduced(introduction: Introduction) -> Introduced:
    return Introduced(
        space_id=introduction.space_id,
        model_id=introduction.model_id,
        serving_model_id=introduction.serving_model_id,
        record=introduction.record,
    )
