"""Finding images, and putting them into a gallery."""

from pathlib import Path

import pytest

from samespace.cloud.gallery.gallery import Gallery
from samespace.cloud.gallery.indexes.memory import MemoryIndex
from samespace.cloud.gallery.ingest import find_images, ingest
from samespace.cloud.gallery.inprocess import InProcessTransport
from samespace.cloud.gallery.registries.memory import MemoryRegistry
from samespace.cloud.gallery.service import create_app
from samespace.sdk.errors import DataError
from samespace.sdk.gallery import GalleryClient
from samespace.sdk.identity import digest


@pytest.fixture
def client(gallery_world) -> GalleryClient:
    gallery = gallery_world.founded(Gallery(MemoryRegistry(), MemoryIndex()))
    return GalleryClient.open("http://g", gallery_world.bundle("cloud"), transport=InProcessTransport(create_app(gallery)))


def test_a_folder_is_added_once_however_often_it_is_run(client, gallery_world) -> None:
    images, acknowledged, done = find_images(gallery_world.images), [], []
    for run in range(2):
        report = ingest(client, client.embedder, images, batch=7, advance=done.append, acknowledged=acknowledged.extend)
        assert (report.added, report.known, report.copies, report.broken) == ((40, 0) if run == 0 else (0, 40)) + (0, [])
    assert sorted(acknowledged) == sorted(digest(image.path.read_bytes()) for image in images)
    assert sum(done) == 80
    image = images[11]
    (hit,) = client.search(image.path, 1)
    assert hit.item_id == digest(image.path.read_bytes())
    assert hit.metadata == {"path": image.path.relative_to(gallery_world.images).as_posix(), "label": image.path.parent.name}


def test_copies_are_one_item(client, gallery_world, tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "sub/c.PNG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(gallery_world.probes[0])
    report = ingest(client, client.embedder, find_images(tmp_path), batch=2)
    assert (report.added, report.copies) == (1, 2)
    assert client.health().spaces[0].items == 1


def test_broken_files_are_named_and_the_others_added(client, gallery_world, tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(gallery_world.probes[0])
    (tmp_path / "cut.jpg").write_bytes(gallery_world.probes[1][:100])
    (tmp_path / "text.jpeg").write_text("no image")
    report = ingest(client, client.embedder, find_images(tmp_path))
    assert report.added == 1
    assert {path.name for path, _ in report.broken} == {"cut.jpg", "text.jpeg"}
    assert all("save it again" in reason for _, reason in report.broken)


def test_a_table_brings_its_columns_along(gallery_world, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(gallery_world.probes[0])
    table = tmp_path / "list.csv"
    table.write_text("\ufeffpath,label,source\na.png,Löwe,phone\nmissing.png,,\n", encoding="utf-8")
    first, second = find_images(table)
    assert first.path == tmp_path / "a.png"
    assert first.metadata == {"path": "a.png", "label": "Löwe", "source": "phone"}
    assert second.path == tmp_path / "missing.png"


def test_a_parquet_table_is_read_like_a_csv(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(
        pyarrow.table({"path": ["a.png", "b.png"], "label": ["x", None], "year": [2024, 2025]}), tmp_path / "t.parquet"
    )
    assert [image.metadata for image in find_images(tmp_path / "t.parquet")] == [
        {"path": "a.png", "label": "x", "year": "2024"},
        {"path": "b.png", "year": "2025"},
    ]


def test_missing_files_of_a_table_are_reported(client, gallery_world, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path\nmissing.png\n")
    report = ingest(client, client.embedder, find_images(tmp_path / "list.csv"))
    assert [(path.name, reason) for path, reason in report.broken] == [("missing.png", "No such file or directory")]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such folder or table"),
        (lambda path: path.mkdir(), "no images in it"),
        (lambda path: path.write_text("x"), "neither a folder nor a .csv or .parquet"),
    ],
)
def test_a_source_that_holds_nothing_is_refused(tmp_path: Path, make, message: str) -> None:
    make(tmp_path / "source")
    with pytest.raises(DataError, match=message):
        find_images(tmp_path / "source")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"file,label\na.png,x\n", "no column 'path'; it has file, label"),
        ("a.csv", b"path,label\n", "no images in it"),
        ("a.csv", b"path,label\na.png,x\n,y\n", "row 3: path is empty"),
        ("a.csv", b"path\n\xff\xfe\n", "cannot be read as a table"),
        ("a.parquet", b"junk", "cannot be read as a table"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        find_images(tmp_path / name)


def test_names_that_are_no_text_do_not_stop_it(gallery_world, tmp_path: Path) -> None:
    import os

    path = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    Path(os.fsdecode(path)).write_bytes(gallery_world.probes[0])
    (image,) = find_images(tmp_path)
    assert image.metadata == {"path": "??.png"}
