"""API keys, roles and tenants: who may do what, and who may not, and what another tenant has."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator

import httpx
import pytest

from samespace.cloud.gallery.gallery import Gallery, partition_of
from samespace.cloud.gallery.indexes.memory import MemoryIndex
from samespace.cloud.gallery.inprocess import InProcessTransport
from samespace.cloud.gallery.keys import KeyRing
from samespace.cloud.gallery.membership import Claim
from samespace.cloud.gallery.registries.memory import MemoryRegistry
from samespace.cloud.gallery.remote_keys import RemoteKeys
from samespace.cloud.gallery.service import ServiceSettings, create_app
from samespace.cloud.gallery.shelf import MemoryShelf, shelf_beside
from samespace.sdk.bundle import Bundle
from samespace.sdk.cli import main
from samespace.sdk.errors import ConfigError
from samespace.sdk.gallery.wire import API, SearchRequest, Vectors
from samespace.sdk.gallery.wire_admin import ApiKeyError, ForbiddenError


class Tenants:
    """A service with keys, and what a client of one of them does."""

    def __init__(self, gallery: Gallery, world) -> None:
        self.world, self.ring = world, KeyRing(gallery.shelf)
        self.transport = InProcessTransport(create_app(gallery, ServiceSettings(keys=self.ring)))
        self.http = httpx.Client(base_url="http://gallery", transport=self.transport)

    def key(self, role: str, tenant: str = "") -> str:
        return self.ring.create(role, tenant, f"a test's {role}")[0]

    def token(self, key: str, name: str = "cloud") -> dict[str, str]:
        """Headers of a caller who shook hands."""
        manifest = Bundle.open(self.world.bundle(name)).manifest
        who = {
            "space_id": manifest.space_id,
            "model_id": manifest.model_id,
            "artifact_id": manifest.artifacts[0].artifact_id,
            "runtime": "numpy",
        }
        headers = {"X-Api-Key": key}
        asked = self.http.post(f"{API}/handshake", json=who, headers=headers).json()
        rows = self.world.embed(name, [base64.b64decode(image) for image in asked["images"]])
        answer = {"challenge": asked["challenge"], "vectors": Vectors.of(rows).model_dump(mode="json")}
        admission = self.http.post(f"{API}/handshake/answer", json=answer, headers=headers).json()
        return {**headers, "Authorization": f"Bearer {admission['token']}"}

    def add(self, headers: dict[str, str], item_id: str) -> httpx.Response:
        rows = self.world.embed("cloud", self.world.probes[:1])
        who = {"space_id": self.world.space.space_id, "model_id": self.world.records["cloud"].model_id}
        vectors = Vectors.of(rows).model_dump(mode="json")
        message = {**who, "ids": [item_id], "metadata": [{"owner": item_id}], "vectors": vectors}
        return self.http.post(f"{API}/items", json=message, headers=headers)

    def found(self, headers: dict[str, str]) -> list[str]:
        rows = Vectors.of(self.world.embed("cloud", self.world.probes[:1]))
        who = {"space_id": self.world.space.space_id, "model_id": self.world.records["cloud"].model_id}
        request = SearchRequest(**who, vectors=rows, k=100)
        answer = self.http.post(f"{API}/search", json=request.model_dump(mode="json"), headers=headers)
        return [hit["item_id"] for hit in answer.json()["hits"][0]]


@pytest.fixture
def tenants(gallery_world) -> Iterator[Tenants]:
    made = Tenants(gallery_world.founded(Gallery(MemoryRegistry(), MemoryIndex())), gallery_world)
    yield made
    made.transport.close()


@pytest.fixture
def stored_tenants(founded_gallery, gallery_world) -> Iterator[Tenants]:
    """With every kind of store."""
    made = Tenants(founded_gallery, gallery_world)
    yield made
    made.transport.close()


def problem(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, response.json()["code"]


def test_no_key_a_wrong_one_and_a_revoked_one_are_refused(tenants) -> None:
    key = tenants.key("reader")
    assert tenants.http.get(f"{API}/health", headers={"X-Api-Key": key}).status_code == 200
    for wrong in (
        None,
        "",
        "x",
        key[:-1] + ("A" if key[-1] != "A" else "B"),
        key.replace("ssk_", "ssk_0"),
        "ssk_" + "0" * 12 + "_" + "a" * 43,
    ):
        headers = {} if wrong is None else {"X-Api-Key": wrong}
        answer = tenants.http.get(f"{API}/health", headers=headers)
        assert problem(answer) == (401, "api_key")
        assert not wrong or wrong == "x" or wrong not in answer.text
    tenants.ring.revoke(key[4:16])
    assert problem(tenants.http.get(f"{API}/health", headers={"X-Api-Key": key})) == (401, "api_key")
    for path in ("/live", "/ready", "/metrics", "/openapi.json"):
        assert tenants.http.get(path).status_code == 200


def test_what_another_process_revoked_is_believed_two_seconds_at_most() -> None:
    now = [0.0]
    shelf = MemoryShelf()
    here, there = KeyRing(shelf, lambda: now[0]), KeyRing(shelf, lambda: now[0])
    key, info = here.create("reader")
    assert here.check(key) == info
    there.revoke(info.key_id)
    now[0] += 2.1
    with pytest.raises(ApiKeyError):
        here.check(key)
    assert [i.revoked for i in here.list()] == [0.0]


def test_only_hashes_are_kept(tenants) -> None:
    key = tenants.key("admin", "acme")
    kept = b"".join(tenants.ring._shelf.all("api-key").values())
    assert key[4:16].encode() in kept
    assert key[17:].encode() not in kept


def test_roles(tenants) -> None:
    reader, writer, admin = (tenants.token(tenants.key(role)) for role in ("reader", "writer", "admin"))
    assert problem(tenants.add(reader, "a")) == (403, "forbidden")
    assert tenants.add(writer, "a").status_code == 200
    assert tenants.found(reader) == ["a"]
    for headers in (reader, writer):
        assert problem(tenants.http.delete(f"{API}/items", params={"item_id": "b"}, headers=reader)) == (403, "forbidden")
        assert problem(tenants.http.get(f"{API}/items/export", headers=headers)) == (403, "forbidden")
        assert problem(tenants.http.get(f"{API}/keys", headers=headers)) == (403, "forbidden")
        assert problem(tenants.http.get(f"{API}/drift", headers=headers)) == (403, "forbidden")
    assert tenants.http.get(f"{API}/items/export", headers=admin).json()["items"][0]["item_id"] == "a"


def test_tenants_have_galleries_of_their_own(stored_tenants) -> None:
    tenants = stored_tenants
    acme, other, nobody = (tenants.token(tenants.key("writer", tenant)) for tenant in ("acme", "other", ""))
    for headers, item_id in ((acme, "acme's"), (other, "other's"), (nobody, "nobody's"), (acme, "same"), (other, "same")):
        assert tenants.add(headers, item_id).status_code == 200
    assert set(tenants.found(acme)) == {"acme's", "same"}
    assert set(tenants.found(other)) == {"other's", "same"}
    assert set(tenants.found(nobody)) == {"nobody's"}
    params = {"item_id": "same"}
    assert tenants.http.delete(f"{API}/items", params=params, headers=acme).status_code == 200
    assert problem(tenants.http.get(f"{API}/items", params=params, headers=acme)) == (404, "no_such_item")
    assert tenants.http.get(f"{API}/items", params=params, headers=other).status_code == 200
    assert problem(tenants.http.get(f"{API}/items", params={"item_id": "other's"}, headers=acme)) == (404, "no_such_item")
    counts = [tenants.http.get(f"{API}/health", headers=h).json()["spaces"][0]["items"] for h in (acme, other, nobody)]
    assert counts == [1, 2, 1]


def test_a_token_is_worth_nothing_with_another_tenants_key(tenants) -> None:
    acme, other = tenants.token(tenants.key("writer", "acme")), tenants.key("admin", "other")
    stolen = {**acme, "X-Api-Key": other}
    assert problem(tenants.add(stolen, "a")) == (403, "forbidden")
    assert problem(tenants.http.get(f"{API}/items", params={"item_id": "a"}, headers=stolen)) == (403, "forbidden")
    bare = {"Authorization": acme["Authorization"]}
    assert problem(tenants.add(bare, "a")) == (401, "api_key")


@pytest.mark.parametrize(
    "damage", [lambda t: t[:-3] + "AA=", lambda t: "A" + t[1:], lambda t: t + "x", lambda t: t.split(".")[0]]
)
def test_forged_tokens_are_refused(tenants, damage) -> None:
    headers = tenants.token(tenants.key("writer"))
    token = headers["Authorization"].removeprefix("Bearer ")
    assert problem(tenants.add({**headers, "Authorization": f"Bearer {damage(token)}"}, "a")) == (401, "token")


def test_a_tenants_administrator_rules_its_tenant_only(tenants, gallery_world) -> None:
    admin = {"X-Api-Key": tenants.key("admin", "acme")}
    tenants.key("reader", "other")
    made = tenants.http.post(f"{API}/keys", json={"role": "reader"}, headers=admin).json()
    assert made["info"]["tenant"] == "acme"
    assert problem(tenants.http.post(f"{API}/keys", json={"role": "admin", "tenant": "other"}, headers=admin)) == (
        403,
        "forbidden",
    )
    listed = tenants.http.get(f"{API}/keys", headers=admin).json()["keys"]
    assert {key["tenant"] for key in listed} == {"acme"}
    assert made["key"] not in json.dumps(listed)
    others = next(info.key_id for info in tenants.ring.list("other"))
    assert problem(tenants.http.delete(f"{API}/keys/{others}", headers=admin)) == (422, "bad_request")
    assert tenants.http.delete(f"{API}/keys/{made['info']['key_id']}", headers=admin).json()["revoked"] is not None
    # What all tenants share is not a tenant's to change.
    space = gallery_world.space
    alias = f"{API}/spaces/{space.space_id}/aliases/other"
    assert problem(tenants.http.put(alias, json={"model_id": space.founder_model_id}, headers=admin)) == (403, "forbidden")
    operator = {"X-Api-Key": tenants.key("admin")}
    assert tenants.http.put(alias, json={"model_id": space.founder_model_id}, headers=operator).status_code == 200


def test_keys_over_http_are_those_of_the_store(tenants) -> None:
    with RemoteKeys("http://gallery", tenants.key("admin"), transport=tenants.transport) as remote:
        text, info = remote.create("writer", "acme", "robot")
        assert tenants.ring.check(text) == info
        assert info in remote.list()
        remote.revoke(info.key_id)
        with pytest.raises(ConfigError, match="tenant"):
            remote.create("reader", "No Such Tenant!")
    with pytest.raises(ApiKeyError):
        tenants.ring.check(text)
    with (
        RemoteKeys(
            "http://gallery", tenants.key("writer"), transport=InProcessTransport(tenants.http._transport._inner.app)
        ) as remote,
        pytest.raises(ForbiddenError, match="role 'writer'"),
    ):
        remote.list()


def test_a_service_without_keys_has_none_to_manage(gallery_world) -> None:
    gallery = gallery_world.founded(Gallery(MemoryRegistry(), MemoryIndex()))
    with httpx.Client(base_url="http://g", transport=InProcessTransport(create_app(gallery))) as http:
        assert problem(http.post(f"{API}/keys", json={"role": "reader"})) == (403, "forbidden")


def test_partitions_have_the_form_of_a_model_id_and_do_not_collide() -> None:
    model = "m-" + "0" * 32
    made = {partition_of(tenant, model) for tenant in ("", "a", "b", "ab")}
    assert len(made) == 4
    assert all(re.fullmatch(r"m-[0-9a-f]{32}", partition) for partition in made)
    assert partition_of("", model) == model
    assert Claim("s", model, "a", "r").tenant == ""


def test_a_shelf_keeps_and_finds(gallery_stores) -> None:
    shelf = shelf_beside(gallery_stores.registry)
    shelf.put("a", "x", b"1")
    shelf.put("a", "x", b"2")
    assert shelf.add("a", "x", b"3") == b"2"
    assert shelf.add("a", "y", b"\x00\xff") is None
    shelf.put("b", "x", b"other")
    assert shelf.all("a") == {"x": b"2", "y": b"\x00\xff"}
    assert (
        shelf_beside(gallery_stores.registry).get("a", "y") if "Postgres" in type(shelf).__name__ else b"\x00\xff"
    ) == b"\x00\xff"
    shelf.drop("a")
    assert (shelf.all("a"), shelf.get("b", "x")) == ({}, b"other")


def ran(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return end.value.code or 0, captured.out.strip(), " ".join(captured.err.split())


@pytest.mark.database
def test_the_command_makes_lists_and_revokes_keys_at_the_store(capsys, postgres_url) -> None:
    where = ("--database", postgres_url)
    code, key, _ = ran(capsys, "gallery", "key", "create", "--role", "writer", "--tenant", "acme", "--name", "a robot", *where)
    assert (code, bool(re.fullmatch(r"ssk_[0-9a-f]{12}_\S{43}", key))) == (0, True)
    assert re.fullmatch(rf"{key[4:16]}  writer  good     \S+  acme  a robot", ran(capsys, "gallery", "key", "list", *where)[1])
    assert ran(capsys, "gallery", "key", "revoke", key[4:16], *where)[1] == f"{key[4:16]} is revoked"
    assert json.loads(ran(capsys, "gallery", "key", "list", *where, "--json")[1])[0]["revoked"] is not None
    code, _, error = ran(capsys, "gallery", "key", "revoke", "nobody", *where)
    assert (code, "there is no key 'nobody'" in error) == (1, True)
    code, _, error = ran(capsys, "gallery", "key", "create", "--role", "emperor", *where)
    assert (code, "there are: reader, writer, admin" in error) == (1, True)
    code, _, error = ran(capsys, "gallery", "key", "list")
    assert (code, "one of --data DIR, --database URL and --gallery URL" in error) == (1, True)


def test_strangers_are_not_let_in_without_keys(capsys, gallery_world) -> None:
    code, _, error = ran(
        capsys, "gallery", "serve", "--memory", "--host", "0.0.0.0", "--port", 0, "--bundle", gallery_world.bundle("cloud")
    )
    assert code == 1
    assert "can be reached by others, and there is no API key yet" in error
