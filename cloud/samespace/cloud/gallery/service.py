"""The gallery over HTTP: FastAPI, JSON, problems with stable codes, Prometheus metrics, OpenAPI at ``/docs``.

Who may do what: with API keys, a key's role and tenant; registering needs a signature that the service trusts; everything
about vectors needs the token of a passed handshake. Liveness, readiness and metrics are open. Put TLS before it.
"""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI

from samespace.cloud.gallery.drift import DriftMonitor
from samespace.cloud.gallery.gallery import Gallery
from samespace.cloud.gallery.gate import Gate
from samespace.cloud.gallery.metrics import Metrics
from samespace.cloud.gallery.problems import add_handlers
from samespace.cloud.gallery.routes import administration, changes, handshakes, items, members, searches, system, upgrades
from samespace.cloud.gallery.routes.dependencies import ServiceSettings
from samespace.sdk.gallery.wire import Problem

__all__ = ["ServiceSettings", "create_app"]

#: One subject each; to add one, write its file in ``routes`` and its name here. Handlers are plain functions: FastAPI runs
#: them in threads, for databases and NumPy block. The busiest first: routes are looked through in this order.
_ROUTERS = (
    searches.router,
    items.router,
    system.router,
    members.router,
    handshakes.router,
    changes.router,
    administration.router,
    upgrades.router,
)


def create_app(gallery: Gallery, settings: ServiceSettings | None = None) -> FastAPI:
    """The service for a gallery; the caller closes the gallery."""
    settings = settings or ServiceSettings()
    app = FastAPI(
        title="samespace gallery",
        version=version("samespace"),
        description="Vectors of one embedding space, searched by every model that was measured to fit it.",
        responses={"4XX": {"model": Problem}, "5XX": {"model": Problem}},
    )
    app.state.gallery = gallery
    app.state.settings = settings
    app.state.metrics = Metrics()
    app.state.drift = DriftMonitor(gallery.sample_of, settings.drift)
    app.state.draining = False
    for router in _ROUTERS:
        app.include_router(router)
    add_handlers(app)
    app.add_middleware(Gate, ring=settings.keys, limits=settings.limits, metrics=app.state.metrics, state=app.state)
    return app
