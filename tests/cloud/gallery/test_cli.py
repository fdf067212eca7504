"""``samespace gallery``: what a user types, and what they are told when it cannot work."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from samespace.sdk.bundle import Bundle


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_serve_add_and_search(serve, run, gallery_world) -> None:
    served = serve("--memory", "--bundle", str(gallery_world.bundle("cloud")))
    assert served.ready["spaces"] == [{"space_id": gallery_world.space.space_id, "name": "tests", "items": 0}]
    added = run("gallery", "add", gallery_world.images, "--gallery", served.url, "--bundle", gallery_world.bundle("cloud"))
    assert (added.code, added.out) == (0, "40 added, 0 were there already, 0 are copies of others\n")
    again = run(
        "gallery", "add", gallery_world.images, "--gallery", served.url, "--bundle", gallery_world.bundle("cloud"), "--json"
    )
    assert json.loads(again.out) == {"added": 0, "known": 40, "copies": 0, "broken": []}
    query = sorted(gallery_world.images.rglob("*.png"))[17]
    options = ("--gallery", served.url, "--bundle", gallery_world.bundle("phone"))
    found = run("gallery", "search", query, *options, "-k", 3, "--json")
    result = json.loads(found.out)
    assert len(result["hits"]) == 3
    assert result["hits"][0]["metadata"]["path"] == query.relative_to(gallery_world.images).as_posix()
    assert result["model_id"] == gallery_world.records["phone"].model_id
    table = run("gallery", "search", query, *options)
    assert table.code == 0
    assert len(table.out.splitlines()) == 5
    assert f"({query.parent.name})" in table.out.splitlines()[0]

    refused = run("gallery", "search", query, "--gallery", served.url, "--bundle", gallery_world.bundle("phone", bgr=True))
    assert refused.code == 1
    assert "handshake refused" in refused.err
    assert "'bgr'" in refused.err
    assert refused.out == ""
    filled = run("gallery", "add", gallery_world.images, "--gallery", served.url, "--bundle", gallery_world.bundle("phone"))
    assert filled.code == 1
    assert "may search it, not fill it" in filled.err
    assert served.stop() == 0


def test_a_broken_image_is_named_and_the_others_are_added(serve, run, gallery_world, tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(gallery_world.probes[0])
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff junk")
    served = serve("--memory", "--bundle", str(gallery_world.bundle("cloud")))
    options = ("--gallery", served.url, "--bundle", gallery_world.bundle("cloud"))
    ran = run("gallery", "add", tmp_path, *options)
    assert (ran.code, ran.out) == (0, "1 added, 0 were there already, 0 are copies of others\n")
    assert "1 of 2 images were left out" in ran.err
    ran = run("gallery", "add", tmp_path, *options, "--strict")
    assert ran.code == 1
    assert ran.out.startswith("0 added, 1 were there already")
    assert "1 of 2 images were left out" in ran.err
    assert "broken.jpg" in ran.err
    ran = run("gallery", "search", tmp_path / "broken.jpg", *options)
    assert ran.code == 1
    assert "broken.jpg" in ran.err


def test_nobody_there(run, gallery_world) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    image = next(gallery_world.images.rglob("*.png"))
    ran = run("gallery", "search", image, "--gallery", url, "--bundle", gallery_world.bundle("phone"))
    assert ran.code == 1
    assert f"no gallery answers at {url}" in ran.err
    assert "samespace gallery serve" in ran.err


def test_a_port_that_is_in_use(run, gallery_world) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ran = run("gallery", "serve", "--memory", "--bundle", gallery_world.bundle("cloud"), "--port", port)
    assert ran.code == 1
    assert f"cannot listen at 127.0.0.1:{port}" in ran.err
    assert "choose another --port" in ran.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--memory", "--database", "postgresql://x"], "one of --data DIR, --database URL and --memory"),
        (["serve", "--memory", "--index", "faiss"], "no vector index is called 'faiss'; there are: memory, milvus, pgvector"),
        (["serve", "--memory", "--bundle", "/nowhere"], "/nowhere: no such bundle"),
        (["serve", "--memory", "--host", "no.such.host.invalid"], "not an address of this machine"),
        (["serve", "--database", "mysql://user:s3cret@host/x"], "not a PostgreSQL URL"),
        (["add", "/nowhere", "--bundle", "/nowhere"], "/nowhere: no such folder or table"),
        (["search", "/nowhere", "--bundle", "/nowhere"], "/nowhere: no such bundle"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(run, arguments: list[str], message: str) -> None:
    ran = run("gallery", *arguments, *(["--port", "0"] if arguments[0] == "serve" else []))
    assert ran.code == 1
    assert ran.err.startswith("error: ")
    assert message in ran.err
    assert "s3cret" not in ran.err
    assert ran.out == ""


def test_a_url_that_is_none(run, gallery_world) -> None:
    ran = run("gallery", "search", "x.png", "--gallery", "localhost:80", "--bundle", gallery_world.bundle("phone"))
    assert ran.code == 1
    assert "starts with http:// or https://" in ran.err


def test_only_the_cloud_bundle_founds(run, gallery_world) -> None:
    ran = run("gallery", "serve", "--memory", "--port", 0, "--bundle", gallery_world.bundle("phone"))
    assert ran.code == 1
    assert "found it with the cloud model's bundle" in ran.err


def test_unsigned_bundles_need_permission(serve, run, gallery_world, caplog) -> None:
    path = gallery_world.bundle("cloud", signed=False)
    ran = run("gallery", "serve", "--memory", "--port", 0, "--bundle", path)
    assert ran.code == 1
    assert "nobody signed this bundle" in ran.err
    served = serve("--memory", "--bundle", str(path), "--allow-unsigned")
    ran = run("gallery", "add", gallery_world.images, "--gallery", served.url, "--bundle", path, "--allow-unsigned")
    assert ran.code == 0
    assert Bundle.open(path, allow_unsigned=True).signer is None


@pytest.mark.database
def test_a_folder_that_is_being_served_is_refused_and_its_items_stay(serve, run, gallery_world, used_folder: Path) -> None:
    served = serve("--data", str(used_folder), "--bundle", str(gallery_world.bundle("cloud")))
    options = ("--gallery", served.url, "--bundle", gallery_world.bundle("cloud"))
    assert run("gallery", "add", gallery_world.images, *options).code == 0
    second = run("gallery", "serve", "--data", used_folder, "--port", 0)
    assert second.code == 1
    assert f"owned by the running process {served.process.pid}" in second.err
    assert "--gallery URL" in second.err
    assert served.stop() == 0
    again = serve("--data", str(used_folder))
    assert [space["items"] for space in again.ready["spaces"]] == [40]
    image = next(gallery_world.images.rglob("*.png"))
    ran = run("gallery", "search", image, "--gallery", again.url, "--bundle", gallery_world.bundle("phone"), "--json")
    assert json.loads(ran.out)["hits"][0]["score"] > 0.8


@pytest.mark.parametrize("command", [[], ["serve"], ["add"], ["search"]])
def test_help_has_an_example(run, command: list[str]) -> None:
    ran = run("gallery", *command, "--help")
    assert ran.code == 0
    assert f"Example: samespace gallery {' '.join(command)}" in " ".join(ran.out.split())


def test_a_gallery_needs_no_torch(gallery_world) -> None:
    code = f"""
import sys
from samespace.cloud.cli.gallery import app
from samespace.cloud.gallery import ingest, serve, service
from samespace.cloud.gallery.gallery import Gallery
from samespace.cloud.gallery.stores import open_stores
from samespace.sdk import Embedder
with open_stores(memory=True) as stores, Embedder.open({str(gallery_world.bundle("cloud"))!r}) as embedder:
    serve.found_from_bundle(Gallery(stores.registry, stores.index), embedder.bundle, embedder)
print(sorted({{"torch", "onnx", "coremltools"}} & sys.modules.keys()))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout == "[]\n", ran.stderr
