"""Adding in bulk: by one process, several, or Ray; killed and run again."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from samespace.cloud.gallery.bulk import add_in_bulk
from samespace.cloud.gallery.gallery import Gallery
from samespace.cloud.gallery.indexes.memory import MemoryIndex
from samespace.cloud.gallery.ingest import find_images
from samespace.cloud.gallery.inprocess import InProcessTransport
from samespace.cloud.gallery.ledger import Ledger
from samespace.cloud.gallery.registries.memory import MemoryRegistry
from samespace.cloud.gallery.service import create_app
from samespace.cloud.gallery.shards import Model, Shard, ShardEmbedder, embedded_by_ray, embedded_here
from samespace.sdk.errors import GalleryError, MissingExtraError, SpaceMismatchError
from samespace.sdk.gallery import GalleryClient
from samespace.sdk.identity import digest


class Bulk:
    """A gallery in memory, pictures in a folder, and a count of what was embedded."""

    def __init__(self, world, folder: Path) -> None:
        self.world, self.source, self.place = world, folder / "pictures", folder / "one.ledger"
        self.source.mkdir()
        self.gallery = world.founded(Gallery(MemoryRegistry(), MemoryIndex()))
        self.transport = InProcessTransport(create_app(self.gallery))
        self.client = GalleryClient.open("http://g", world.bundle("cloud"), transport=self.transport)
        self.embedded: list[str] = []
        self.pictures(20)

    def pictures(self, count: int, start: int = 0) -> None:
        for number in range(start, start + count):
            (self.source / f"{number:03d}.png").write_bytes(self.world.probes[number])

    def ledger(self, client: GalleryClient | None = None) -> Ledger:
        embedder = (client or self.client).embedder
        return Ledger(self.place, {"space": embedder.space_id, "model": embedder.model_id}, embedder.dim)

    def embed(self, shards):
        for done in map(ShardEmbedder(self.client.embedder), shards):
            self.embedded += done.ids
            yield done

    def add(self, embed=None, shard: int = 6):
        return add_in_bulk(self.client, find_images(self.source), embed or self.embed, self.ledger(), shard=shard)


@pytest.fixture
def bulk(gallery_world, tmp_path: Path) -> Bulk:
    return Bulk(gallery_world, tmp_path)


def ids_of(folder: Path) -> set[str]:
    return {digest(path.read_bytes()) for path in folder.rglob("*.png")}


def test_each_picture_is_embedded_and_added_once(bulk: Bulk) -> None:
    (bulk.source / "copy.png").write_bytes(bulk.world.probes[3])
    report = bulk.add()
    assert (report.added, report.known, report.copies, report.broken) == (20, 0, 1, [])
    assert sorted(bulk.embedded) == sorted(ids_of(bulk.source))
    again = bulk.add()
    assert (again.added, again.known, again.copies) == (0, 20, 1)
    bulk.pictures(3, start=20)
    assert bulk.add().added == 3
    assert len(bulk.embedded) == 23
    (hit,) = bulk.client.search(bulk.world.probes[5], 1)
    assert (hit.item_id, hit.metadata) == (digest(bulk.world.probes[5]), {"path": "005.png"})
    vector = bulk.client.fetch([hit.item_id])[0].vector.array()[0]
    np.testing.assert_allclose(vector, bulk.world.embed("cloud", [bulk.world.probes[5]])[0], atol=1e-5)


def test_what_was_embedded_when_the_service_went_away_is_sent_and_not_embedded_again(bulk: Bulk) -> None:
    def until_third(shards):
        for number, done in enumerate(bulk.embed(shards)):
            if number == 2:
                bulk.transport.handle_request = gone  # type: ignore[method-assign]
            yield done

    def gone(request: httpx.Request) -> httpx.Response:
        return httpx.Response(500, json={"title": "t", "status": 500, "detail": "gone", "code": "gallery"})

    there = bulk.transport.handle_request
    with pytest.raises(GalleryError, match="gone"):
        bulk.add(until_third)
    bulk.transport.handle_request = there  # type: ignore[method-assign]
    assert len(bulk.embedded) == 18
    report = bulk.add()
    assert (report.added, report.known) == (8, 18)
    assert Counter(bulk.embedded) == Counter(ids_of(bulk.source))


def test_the_gallery_says_what_is_there_and_not_the_ledger(bulk: Bulk) -> None:
    bulk.add()
    gone = digest(bulk.world.probes[7])
    bulk.client.delete(gone)
    assert bulk.add().added == 1
    assert bulk.client.known([gone]) == {gone}
    # A file that became another picture is another item.
    (bulk.source / "007.png").write_bytes(bulk.world.probes[40])
    assert bulk.add().added == 1
    assert bulk.client.known([digest(bulk.world.probes[40])])


def test_a_ledger_of_another_model_is_refused_and_so_is_a_model_that_may_not_fill(bulk: Bulk) -> None:
    bulk.add()
    phone = GalleryClient.open("http://g", bulk.world.bundle("phone"), transport=bulk.transport)
    with pytest.raises(SpaceMismatchError, match="shard ledger of the model"):
        bulk.ledger(phone)
    with pytest.raises(SpaceMismatchError, match="may search it, not fill it"):
        add_in_bulk(phone, find_images(bulk.source), bulk.embed, bulk.ledger())


def test_unreadable_pictures_are_named_and_the_others_added(bulk: Bulk, tmp_path: Path) -> None:
    (bulk.source / "cut.jpg").write_bytes(bulk.world.probes[30][:100])
    (bulk.source / "text.png").write_text("no picture")
    table = tmp_path / "table.csv"
    table.write_text("path\npictures/cut.jpg\npictures/001.png\nabsent.png\n")
    report = bulk.add()
    assert report.added == 20
    assert {path.name for path, _ in report.broken} == {"cut.jpg", "text.png"}
    listed = add_in_bulk(bulk.client, find_images(table), bulk.embed, bulk.ledger())
    assert [(path.name, "No such file" in reason) for path, reason in sorted(listed.broken)] == [
        ("absent.png", True),
        ("cut.jpg", False),
    ]


def test_a_file_that_changes_meanwhile_does_not_get_the_wrong_id(bulk: Bulk) -> None:
    path = bulk.source / "000.png"
    shard = Shard("k", ((digest(bulk.world.probes[0]), path),), ({},))
    path.write_bytes(bulk.world.probes[1])
    done = ShardEmbedder(bulk.client.embedder)(shard)
    assert done.ids == ()
    assert "was changed" in done.broken[0][1]


def shards_of(bulk: Bulk, size: int = 5) -> list[Shard]:
    files = [(digest(path.read_bytes()), path) for path in sorted(bulk.source.iterdir())]
    return [Shard(str(at), tuple(files[at : at + size]), ({},) * size) for at in range(0, len(files), size)]


def test_several_processes_embed_the_same_and_one_that_dies_is_said(bulk: Bulk) -> None:
    model = Model(str(bulk.world.bundle("cloud")), threads=1)
    here = list(map(ShardEmbedder(bulk.client.embedder), shards_of(bulk)))
    made = embedded_here(iter(shards_of(bulk) * 40), model, 2, bulk.client.embedder)
    for expected in here:
        done = next(made)
        assert done.ids == expected.ids
        np.testing.assert_allclose(done.vectors, expected.vectors, atol=1e-6)
    for child in psutil.Process().children():
        # Only the workers; the tests' own helpers are not theirs.
        if "spawn_main" in " ".join(child.cmdline()):
            child.kill()
    with pytest.raises(GalleryError, match=r"a worker died.*fewer --workers"):
        list(made)


RUN = """
import sys
from pathlib import Path
from samespace.cloud.gallery.bulk import add_in_bulk
from samespace.cloud.gallery.ingest import find_images
from samespace.cloud.gallery.ledger import Ledger
from samespace.cloud.gallery.shards import ShardEmbedder
from samespace.sdk.gallery import GalleryClient
url, bundle, source, ledger = sys.argv[1:]

def embed(shards):
    for shard in shards:
        print("begin", *(item_id for item_id, _ in shard.files), flush=True)
        yield ShardEmbedder(client.embedder)(shard)

with GalleryClient.open(url, bundle) as client:
    embedder = client.embedder
    kept = Ledger(Path(ledger), {"model": embedder.model_id}, embedder.dim)
    add_in_bulk(client, find_images(Path(source)), embed, kept, shard=3)
    print("end", flush=True)
"""


def test_killed_in_the_middle_only_the_shard_under_way_is_embedded_again(serve, gallery_world, tmp_path: Path) -> None:
    served = serve("--memory", "--bundle", str(gallery_world.bundle("cloud")))
    arguments = [served.url, gallery_world.bundle("cloud"), gallery_world.images, tmp_path / "killed.ledger"]
    chance, begun, kills = random.Random(8), Counter[str](), 0
    for kill in (True, False):
        command = [sys.executable, "-c", RUN, *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        lines: list[str] = []
        if kill:
            lines += [process.stdout.readline() for _ in range(chance.randint(2, 6))]
            process.kill()
            kills += 1
        rest, _ = process.communicate(timeout=60)
        for line in [*lines, *rest.splitlines()]:
            if line.startswith("begin"):
                begun.update(line.split()[1:])
    assert line == "end"
    everything = ids_of(gallery_world.images)
    assert begun.keys() == everything
    assert sum(begun.values()) - len(everything) <= 3 * kills
    metrics = httpx.get(f"{served.url}/metrics").text.splitlines()
    (written,) = [float(row.split()[1]) for row in metrics if row.startswith("samespace_items_added_total ")]
    assert written == len(everything)


def test_workers_end_with_the_command_that_is_killed(serve, gallery_world, tmp_path: Path) -> None:
    served = serve("--memory", "--bundle", str(gallery_world.bundle("cloud")))
    options = ["--gallery", served.url, "--bundle", str(gallery_world.bundle("cloud")), "--workers", "2", "--batch", "1"]
    command = [sys.executable, "-c", "from samespace.sdk.cli import main; main()", "gallery", "add"]
    process = subprocess.Popen(
        [*command, str(gallery_world.images), *options, "--ledger", str(tmp_path / "l")], stderr=subprocess.DEVNULL
    )
    workers: list[psutil.Process] = []
    while len(workers) < 2 and process.poll() is None:
        workers = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    assert len(workers) == 2
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []


def test_without_a_gpu_or_ray_it_says_so(bulk: Bulk, capsys) -> None:
    from samespace.sdk.cli import main

    arguments = ["gallery", "add", str(bulk.source), "--bundle", str(bulk.world.bundle("cloud"))]
    for more, message in (
        (["--gpu"], "onnxruntime has no CUDA here"),
        (["--gpu", "--workers", "2"], "leave out --workers and --ray"),
        (["--gallery", "nowhere"], "is not the URL of a gallery"),
    ):
        with pytest.raises(SystemExit) as end:
            main([*arguments, *more])
        assert end.value.code == 1
        assert message in " ".join(capsys.readouterr().err.split())


def test_ray_embeds_the_same(bulk: Bulk, monkeypatch) -> None:
    model = Model(str(bulk.world.bundle("cloud")), threads=1)
    try:
        import ray  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtraError, match=r"samespace\[ray\]"):
            list(embedded_by_ray(shards_of(bulk), model, 1, None))
        pytest.skip("Ray is not installed: pip install 'samespace[ray]'")
    report = bulk.add(partial(embedded_by_ray, model=model, workers=1, address=None))
    assert report.added == 20
    item = digest(bulk.world.probes[5])
    vector = bulk.client.fetch([item])[0].vector.array()[0]
    np.testing.assert_allclose(vector, bulk.world.embed("cloud", [bulk.world.probes[5]])[0], atol=1e-5)
