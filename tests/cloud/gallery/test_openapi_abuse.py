"""Requests made from the service's own description, right and wrong: refused with a reason, never a server error."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from samespace.cloud.gallery.gallery import Gallery
from samespace.cloud.gallery.inprocess import InProcessTransport
from samespace.cloud.gallery.service import create_app
from samespace.cloud.gallery.stores import open_stores
from samespace.sdk.gallery import GalleryClient

pytestmark = pytest.mark.database
#: Of each operation; SAMESPACE_FUZZ=1000 makes as many more.
EXAMPLES = int(os.environ.get("SAMESPACE_FUZZ", "10"))


class Fuzzed:
    """An app with a gallery in it, and the token of a device that shook hands."""

    def __init__(self, gallery: Gallery, world) -> None:
        self.app = create_app(world.founded(gallery))
        self.schema = schemathesis.openapi.from_asgi("/openapi.json", self.app)
        with GalleryClient.open("http://g", world.bundle("cloud"), transport=InProcessTransport(self.app)) as client:
            self.headers = {"Authorization": f"Bearer {client.handshake().token}"}


@pytest.fixture
def fuzzed(postgres_url, gallery_world) -> Iterator[Fuzzed]:
    # PostgreSQL is stricter than memory: no NUL in a text, no number beyond its columns.
    with open_stores(database=postgres_url) as stores:
        made = Fuzzed(Gallery(stores.registry, stores.index), gallery_world)
        yield made
        made.app.state.drift.close()


def test_every_operation_survives_generated_requests(fuzzed) -> None:
    statuses = [ask(result.ok(), fuzzed.headers) for result in fuzzed.schema.get_all_operations()]
    assert len(statuses) > 20
    assert {200, 422} <= set().union(*statuses)


def ask(operation, headers: dict[str, str]) -> set[int]:
    """Send generated requests; the statuses of the answers, none of them a server error."""
    statuses = set()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def requested(case) -> None:
        response = case.call(headers=headers)
        statuses.add(response.status_code)
        assert response.status_code < 500, (operation.label, case.body, response.text)

    requested()
    return statuses
