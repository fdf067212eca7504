"""SIGKILL at a random moment, to the one that adds and to the service with its database: no acknowledged vector is
lost.
"""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from samespace.sdk.gallery import GalleryClient
from samespace.sdk.identity import digest

pytestmark = pytest.mark.database

#: ``samespace gallery add`` with a word for each acknowledged batch.
ADD = """
import sys
from pathlib import Path
from samespace.cloud.gallery.ingest import find_images, ingest
from samespace.sdk.gallery import GalleryClient
url, bundle, images = sys.argv[1:]
with GalleryClient.open(url, bundle) as client:
    ingest(client, client.embedder, find_images(Path(images)), batch=2, acknowledged=lambda ids: print(*ids,
    flush=True))
"""
CLI = "from samespace.sdk.cli import main; main()"


def add_until(batches: int, url: str, world) -> tuple[subprocess.Popen, set[str]]:
    """A process that is adding, and the ids that were acknowledged to it in its first ``batches`` batches."""
    command = [sys.executable, "-c", ADD, url, str(world.bundle("cloud")), str(world.images)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    acknowledged = set()
    for _ in range(batches):
        acknowledged.update(process.stdout.readline().split())
    return process, acknowledged


def kill(process: subprocess.Popen) -> set[str]:
    """What it had still been told when it died."""
    process.kill()
    rest, _ = process.communicate()
    return {word for line in rest.splitlines(keepends=True) if line.endswith("\n") for word in line.split()}


def finish(url: str, world) -> None:
    command = [sys.executable, "-c", CLI, "gallery", "add", str(world.images), "--gallery", url, "--bundle"]
    subprocess.run([*command, str(world.bundle("cloud"))], check=True, capture_output=True)


def assert_complete(url: str, world) -> None:
    everything = {digest(path.read_bytes()) for path in world.images.rglob("*.png")}
    with GalleryClient.open(url, world.bundle("cloud")) as client:
        assert client.known(everything) == everything
        assert client.health().spaces[0].items == len(everything)


def test_killing_the_one_that_adds(serve, gallery_world, used_folder: Path) -> None:
    served = serve("--data", str(used_folder), "--bundle", str(gallery_world.bundle("cloud")))
    chance, acknowledged = random.Random(1), set()
    for _ in range(2):
        process, told = add_until(chance.randint(1, 7), served.url, gallery_world)
        acknowledged |= told | kill(process)
        with GalleryClient.open(served.url, gallery_world.bundle("cloud")) as client:
            assert client.known(acknowledged) == acknowledged
    assert 0 < len(acknowledged) < 40
    finish(served.url, gallery_world)
    assert_complete(served.url, gallery_world)


def test_killing_the_command_itself(serve, gallery_world, used_folder: Path) -> None:
    served = serve("--data", str(used_folder), "--bundle", str(gallery_world.bundle("cloud")))
    command = [sys.executable, "-c", CLI, "gallery", "add", str(gallery_world.images), "--gallery", served.url, "--batch", "2"]
    process = subprocess.Popen([*command, "--bundle", str(gallery_world.bundle("cloud"))], stderr=subprocess.DEVNULL)

    def counted() -> float:
        lines = httpx.get(f"{served.url}/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("samespace_items_added_total "))

    while counted() < 9 and process.poll() is None:
        pass
    process.kill()
    process.wait()
    assert httpx.get(f"{served.url}/v1/health").json()["spaces"][0]["items"] >= counted() >= 9
    finish(served.url, gallery_world)
    assert_complete(served.url, gallery_world)


def test_killing_the_service_and_its_database(serve, gallery_world, used_folder: Path) -> None:
    chance, acknowledged = random.Random(2), set()
    options = ("--data", str(used_folder), "--bundle", str(gallery_world.bundle("cloud")))
    for database_too in (True, False):
        served = serve(*options)
        if acknowledged:
            with GalleryClient.open(served.url, gallery_world.bundle("cloud")) as client:
                assert client.known(acknowledged) == acknowledged
        process, told = add_until(chance.randint(1, 7), served.url, gallery_world)
        assert servers_of(used_folder)
        if database_too:
            os.kill(int((used_folder / "postgres" / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
        served.kill()
        acknowledged |= told | kill(process)
    served = serve(*options)
    with GalleryClient.open(served.url, gallery_world.bundle("cloud")) as client:
        assert client.known(acknowledged) == acknowledged
    assert 0 < len(acknowledged) < 40
    finish(served.url, gallery_world)
    assert_complete(served.url, gallery_world)
    assert served.stop() == 0
    assert servers_of(used_folder) == []


def servers_of(folder: Path) -> list[int]:
    return [
        p.pid
        for p in psutil.process_iter(["name", "cwd"])
        if p.info["name"] == "postgres" and p.info["cwd"] == f"{folder}/postgres"
    ]
