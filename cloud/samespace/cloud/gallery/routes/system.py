"""Whether the service is there, what it holds and what it counts."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import APIRouter, Request, Response

from samespace.cloud.gallery.browsing import partition_of
from samespace.cloud.gallery.recall import stated_recall
from samespace.cloud.gallery.routes.dependencies import DriftOf, GalleryOf, MetricsOf, ReaderOf
from samespace.sdk.errors import GalleryError
from samespace.sdk.gallery.wire import API, GalleryHealth, SpaceState
from samespace.sdk.gallery.wire_admin import OverloadedError

router = APIRouter(tags=["system"])


@router.get("/live")
def live() -> dict[str, str]:
    """The process answers; it need not be started again."""
    return {"status": "live"}


@router.get("/ready")
def ready(request: Request, gallery: GalleryOf) -> dict[str, str]:
    """Requests may be sent here; 503 while the store does not answer, and before the service stops."""
    if getattr(request.app.state, "draining", False):
        raise OverloadedError("this gallery is about to stop; ask another instance")
    gallery.ping()
    return {"status": "ready"}


@router.get(f"{API}/health")
def health(gallery: GalleryOf, caller: ReaderOf) -> GalleryHealth:
    """What the service holds for the asking tenant; 503 when its store does not answer."""
    states = (
        SpaceState(
            space_id=s.space.space_id,
            space=s.space,
            serving_model_id=s.serving_model_id,
            items=s.items,
            recall=stated_recall(gallery.shelf, partition_of(caller.tenant, s.serving_model_id)),
        )
        for s in gallery.spaces(caller.tenant)
    )
    return GalleryHealth(status="ok", version=version("samespace"), spaces=tuple(states))


@router.get("/metrics", response_class=Response)
def metrics(gallery: GalleryOf, metrics: MetricsOf, drift: DriftOf) -> Response:
    """For Prometheus. What is counted here can be had when the store does not answer, too."""
    try:
        spaces = gallery.spaces()
    except GalleryError:
        spaces = ()
    drifting = {(b.model_id, b.device, b.runtime) for b in drift.report() if b.state == "drifting"}
    return Response(metrics.exposition(spaces, drifting), media_type=metrics.content_type)
