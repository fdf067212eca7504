"""Folders and manifests as people have them: every kind of picture, and every way in which they can be wrong."""

from __future__ import annotations

import io
import logging
import os
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from samespace.cloud.data import DataConfig, FolderConfig, ImageSet, ManifestConfig, cached_tensors, make_split, open_dataset
from samespace.sdk.errors import ConfigError, DataError, MissingExtraError
from samespace.sdk.preprocess import Preprocess


def picture(seed: int, height: int = 12, width: int = 17) -> npt.NDArray[np.uint8]:
    """Smooth enough to survive JPEG."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def save(path: Path, seed: int = 0, mode: str = "RGB", **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed)).convert(mode).save(path, **options)
    return path


def folder(root: Path, classes: int = 5, each: int = 3) -> Path:
    for label in range(classes):
        for number in range(each):
            save(root / f"class-{label}" / f"{number}.png", seed=label * 100 + number)
    return root


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., ImageSet]:
    def go(root: Path, **settings: Any) -> ImageSet:
        return open_dataset(FolderConfig(root=root, **settings), cache=tmp_path / "cache", show=False)

    return go


# Folders that are right


def test_a_folder_of_classes_is_an_image_set(tmp_path: Path, opened: Callable[..., ImageSet]) -> None:
    images = opened(folder(tmp_path / "set"))
    assert [item.key for item in images.items] == [f"class-{c}/{n}.png" for c in range(5) for n in range(3)]
    assert images.items[4].label == "class-1"
    assert images.items[4].source == ""
    np.testing.assert_array_equal(np.asarray(images.load(4)), picture(101))
    assert images.encoded(4) == (tmp_path / "set/class-1/1.png").read_bytes()


def test_a_second_level_of_folders_is_the_source(tmp_path: Path, opened: Callable[..., ImageSet]) -> None:
    for label in range(4):
        for source in ("phone", "shop"):
            save(tmp_path / "set" / f"c{label}" / source / "deep" / "a.JPG", seed=label)
        save(tmp_path / "set" / f"c{label}" / "b.png", seed=label + 50)
    images = opened(tmp_path / "set")
    assert {(item.key.split("/", 1)[1], item.source) for item in images.items} == {
        ("b.png", ""),
        ("phone/deep/a.JPG", "phone"),
        ("shop/deep/a.JPG", "shop"),
    }
    config = FolderConfig(root=tmp_path / "set", query_sources=("phone",), gallery_sources=("shop",))
    split = make_split(config, images)
    assert {images.items[i].source for i in split.test_query} == {"phone"}
    assert {images.items[i].source for i in split.test_gallery} == {"shop"}


def test_sources_can_be_told_by_pattern(tmp_path: Path, opened: Callable[..., ImageSet]) -> None:
    for label in range(4):
        for name in ("a_phone.png", "b_phone.png", "c.png"):
            save(tmp_path / "set" / f"c{label}" / name, seed=label * 10 + len(name) + ord(name[0]))
    images = opened(tmp_path / "set", sources={"phone": "*_phone.png", "rest": "*"})
    assert [item.source for item in images.items] == ["phone", "phone", "rest"] * 4
    with pytest.raises(DataError, match=r"fits no picture for camera = '\*_cam\.png'.*c0/a_phone\.png"):
        opened(tmp_path / "set", sources={"camera": "*_cam.png"})


KINDS: dict[str, dict[str, Any]] = {
    "rgb.jpg": {"quality": 95},
    "grey.jpg": {"mode": "L", "quality": 95},
    "cmyk.jpg": {"mode": "CMYK", "quality": 95},
    "grey.png": {"mode": "L"},
    "grey-alpha.png": {"mode": "LA"},
    "alpha.png": {"mode": "RGBA"},
    "palette.png": {"mode": "P"},
    "bits.png": {"mode": "1"},
    "deep.tif": {"mode": "I;16"},
    "rgb.webp": {"lossless": True},
    "palette.gif": {"mode": "P"},
    "rgb.bmp": {},
}


def test_every_usual_kind_of_picture_is_taken(tmp_path: Path, opened: Callable[..., ImageSet]) -> None:
    for label in range(4):
        for name, options in KINDS.items():
            options = dict(options)
            mode = options.pop("mode", "RGB")
            path = tmp_path / "set" / f"c{label}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if mode == "I;16":
                Image.fromarray(picture(label)[..., 0].astype(np.uint16) * 257).save(path)
            else:
                save(path, label, mode, **options)
    images = opened(tmp_path / "set")
    assert len(images.items) == 4 * len(KINDS)
    tensors = cached_tensors(images, range(len(KINDS)), Preprocess(size=16), tmp_path / "cache", show_progress=False)
    names = [item.key.rpartition("/")[2] for item in images.items]
    colour = Preprocess(size=16)(picture(0)).astype(int)
    grey = Preprocess(size=16)(Image.fromarray(picture(0)).convert("L")).astype(int)
    for name in ("rgb.jpg", "cmyk.jpg", "alpha.png", "rgb.webp", "rgb.bmp"):
        assert np.abs(tensors[names.index(name)].astype(int) - colour).mean() < 6, name
    for name in ("grey.jpg", "grey.png", "grey-alpha.png"):
        assert np.abs(tensors[names.index(name)].astype(int) - grey).mean() < 3, name


def test_what_is_transparent_shows_the_background(tmp_path: Path, opened: Callable[..., ImageSet]) -> None:
    root = folder(tmp_path / "set")
    rgba = np.dstack([picture(5), np.zeros((12, 17), np.uint8)])
    Image.fromarray(rgba).save(root / "class-0" / "clear.png")
    images = opened(root)
    index = [item.key for item in images.items].index("class-0/clear.png")
    assert (Preprocess(size=16)(images.load(index)) == 255).all()


def test_exif_rotations_are_undone_once(tmp_path: Path, opened: Callable[..., ImageSet]) -> None:
    upright = Image.fromarray(picture(3))
    # How a camera that was held like that would have stored it: the inverse of what the tag asks for.
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }
    for label in range(4):
        for orientation, image in stored.items():
            exif = Image.Exif()
            exif[0x0112] = orientation
            path = tmp_path / "set" / f"c{label}" / f"{orientation}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, exif=exif, quality=98, subsampling=0)
    images = opened(tmp_path / "set")
    tensors = cached_tensors(images, range(8), Preprocess(size=16), tmp_path / "cache", show_progress=False).astype(int)
    expected = Preprocess(size=16)(picture(3)).astype(int)
    assert np.abs(tensors - expected).max() <= 12, "JPEG's own loss"
    for index in range(8):
        np.testing.assert_array_equal(tensors[index], Preprocess(size=16)(images.encoded(index)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (7, 2000)])
def test_odd_sizes_are_taken(shape: tuple[int, int], tmp_path: Path, opened: Callable[..., ImageSet]) -> None:
    root = folder(tmp_path / "set")
    Image.fromarray(picture(1, *shape)).save(root / "class-0" / "a-odd.png")
    images = opened(root)
    index = [item.key for item in images.items].index("class-0/a-odd.png")
    assert images.load(index).size == shape[::-1]
    assert Preprocess(size=32)(images.load(index)).shape == (32, 32, 3)


def test_what_is_no_picture_is_ignored_and_said(
    tmp_path: Path, opened: Callable[..., ImageSet], caplog: pytest.LogCaptureFixture
) -> None:
    root = folder(tmp_path / "set")
    for name in (".DS_Store", "class-0/Thumbs.db", "class-0/.hidden.png", ".git/x.png", "class-1/notes.txt", "README.md"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("no picture")
    with caplog.at_level(logging.WARNING):
        images = opened(root)
    assert len(images.items) == 15
    assert [record.getMessage() for record in caplog.records] == [
        f"{root / 'class-1'}: ignored 1 files that are no pictures: notes.txt"
    ]


def test_names_mean_the_same_composed_and_decomposed(tmp_path: Path, opened: Callable[..., ImageSet]) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    keys = []
    for name in (composed, decomposed):
        root = folder(tmp_path / name.encode().hex())
        save(root / name / "é.png".replace("é", name), seed=1)
        save(root / name / "other.png", seed=2)
        keys.append([(item.key, item.label) for item in opened(root).items])
    assert keys[0] == keys[1]


def test_the_order_of_the_file_system_does_not_matter(
    tmp_path: Path, opened: Callable[..., ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(tmp_path / "set")
    expected = opened(root)
    walk, iterdir = os.walk, Path.iterdir
    monkeypatch.setattr(os, "walk", lambda *a, **k: ((f, d[::-1], sorted(n)[::-1]) for f, d, n in walk(*a, **k)))
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(sorted(iterdir(self))[::-1]))
    again = opened(root)
    assert again.items == expected.items
    assert again.fingerprint == expected.fingerprint


def test_pictures_are_checked_once_and_again_when_they_change(
    tmp_path: Path, opened: Callable[..., ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    import samespace.cloud.data.files as files

    root = folder(tmp_path / "set")
    looked: list[str] = []
    look = files._look
    monkeypatch.setattr(files, "_look", lambda path, preprocess: (looked.append(path.name), look(path, preprocess))[1])
    first = opened(root)
    assert len(looked) == 15
    assert opened(root).fingerprint == first.fingerprint
    assert len(looked) == 15, "nothing changed: nothing decoded"
    save(root / "class-2" / "1.png", seed=999)
    changed = opened(root)
    assert looked[15:] == ["1.png"]
    assert changed.fingerprint != first.fingerprint


def test_copies_are_pointed_out(tmp_path: Path, opened: Callable[..., ImageSet], caplog: pytest.LogCaptureFixture) -> None:
    root = folder(tmp_path / "set")
    (root / "class-0" / "copy.png").write_bytes((root / "class-0" / "1.png").read_bytes())
    with caplog.at_level(logging.WARNING):
        opened(root)
    assert "1 pictures are byte for byte copies" in caplog.text
    assert "class-0/copy.png = class-0/1.png" in caplog.text


# Folders that are wrong


def test_a_wrong_path_is_named(tmp_path: Path, opened: Callable[..., ImageSet]) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist.*data\.root"):
        opened(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"x\.png is a file, not a folder"):
        opened(save(tmp_path / "x.png"))


def test_an_empty_folder_says_what_belongs_there(tmp_path: Path, opened: Callable[..., ImageSet]) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(
        DataError, match=r"set holds no sub-folder; put the pictures of each class into a folder named after it"
    ):
        opened(tmp_path / "set")


def test_an_empty_class_is_named(tmp_path: Path, opened: Callable[..., ImageSet]) -> None:
    root = folder(tmp_path / "set")
    (root / "hollow").mkdir()
    (root / "hollow" / "readme.txt").write_text("later")
    with pytest.raises(DataError, match=r"no picture in hollow; add some"):
        opened(root)


def test_pictures_outside_of_a_class_are_named(tmp_path: Path, opened: Callable[..., ImageSet]) -> None:
    root = folder(tmp_path / "set")
    save(root / "stray.jpg")
    with pytest.raises(DataError, match=r"outside of any class folder: stray\.jpg; move each"):
        opened(root)


def test_a_class_with_one_picture_is_named(tmp_path: Path, opened: Callable[..., ImageSet]) -> None:
    root = folder(tmp_path / "set")
    save(root / "lonely" / "only.png", seed=77)
    with pytest.raises(DataError, match=r"1 of 6 classes have one picture only: lonely \(lonely/only\.png\).*add pictures"):
        opened(root)


def test_too_few_classes_are_counted(tmp_path: Path, opened: Callable[..., ImageSet]) -> None:
    root = folder(tmp_path / "set", classes=3)
    with pytest.raises(DataError, match="3 classes are too few; it takes 4"):
        make_split(FolderConfig(root=root), opened(root))


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(seed, 60, 60)).save(buffer, "JPEG")
    return buffer.getvalue()


BROKEN = {
    "empty.jpg": b"",
    "cut.jpg": jpeg(1)[: len(jpeg(1)) // 2],
    "text.png": b"<html>404</html>",
    "header.png": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(8),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_picture_is_named_before_training_starts(name: str, tmp_path: Path, opened: Callable[..., ImageSet]) -> None:
    root = folder(tmp_path / "set")
    (root / "class-1" / name).write_bytes(BROKEN[name])
    with pytest.raises(DataError, match=rf"1 of 16 pictures cannot be decoded: class-1/{name} \(.+\).*on_broken"):
        opened(root)
    # What was found is remembered, and must be said again.
    with pytest.raises(DataError, match=rf"class-1/{name}"):
        opened(root)


def test_broken_pictures_can_be_left_out(
    tmp_path: Path, opened: Callable[..., ImageSet], caplog: pytest.LogCaptureFixture
) -> None:
    root = folder(tmp_path / "set")
    expected = opened(root).items
    for name, content in BROKEN.items():
        (root / "class-1" / name).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        images = opened(root, on_broken="skip")
    assert images.items == expected
    assert "left out 4 of 19 pictures" in caplog.text
    assert all(name in caplog.text for name in BROKEN)
    np.testing.assert_array_equal(np.asarray(images.load(4)), picture(101))


def test_a_class_that_lost_its_pictures_to_damage_is_named(tmp_path: Path, opened: Callable[..., ImageSet]) -> None:
    root = folder(tmp_path / "set")
    for number in (0, 1):
        (root / "class-1" / f"{number}.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"one picture only: class-1 \(class-1/2\.png\)"):
        opened(root, on_broken="skip")


def test_a_picture_that_is_too_large_counts_as_broken(tmp_path: Path, opened: Callable[..., ImageSet]) -> None:
    root = folder(tmp_path / "set")
    Image.new("1", (9000, 9000)).save(root / "class-0" / "huge.png")
    with pytest.raises(DataError, match=r"class-0/huge\.png \(9000x9000 is more than 50000000 pixels"):
        opened(root)


def test_a_long_list_is_cut_and_counted(tmp_path: Path, opened: Callable[..., ImageSet]) -> None:
    root = folder(tmp_path / "set")
    for number in range(25):
        (root / "class-0" / f"bad-{number:02d}.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"25 of 40 pictures.*bad-19\.png.* and 5 more") as caught:
        opened(root)
    assert "bad-20.png" not in str(caught.value)


def test_a_picture_that_vanishes_afterwards_is_named(tmp_path: Path, opened: Callable[..., ImageSet]) -> None:
    images = opened(folder(tmp_path / "set"))
    (tmp_path / "set/class-0/0.png").unlink()
    with pytest.raises(DataError, match=r"0\.png: cannot be read any more"):
        images.load(0)
    with pytest.raises(DataError, match=r"0\.png: cannot be read any more"):
        images.encoded(0)


def test_misspelt_keys_are_refused() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(DataConfig)
    with pytest.raises(ValidationError, match="on_brokn"):
        adapter.validate_python({"kind": "folder", "root": "x", "on_brokn": "skip"})
    with pytest.raises(ValidationError, match="kind"):
        adapter.validate_python({"kind": "foldr", "root": "x"})
    with pytest.raises(ValidationError, match="phone cannot be both in query_sources and in gallery_sources"):
        adapter.validate_python({"kind": "folder", "root": "x", "query_sources": ["phone"], "gallery_sources": ["phone"]})
    assert isinstance(adapter.validate_python({"kind": "manifest", "path": "x.csv"}), ManifestConfig)


# Manifests


ROWS = [("c%d" % (n // 3), "pictures/%d.png" % n, ["phone", "shop", "shop"][n % 3]) for n in range(15)]  # noqa: UP031


@pytest.fixture
def table(tmp_path: Path) -> Path:
    for number, (_, path, _) in enumerate(ROWS):
        save(tmp_path / path, seed=number)
    return tmp_path / "table.csv"


def write(path: Path, rows: list[tuple[str, ...]], header: tuple[str, ...], encoding: str = "utf-8") -> Path:
    lines = [",".join(header), *(",".join(row) for row in rows)]
    path.write_bytes(("\r\n".join(lines) + "\r\n").encode(encoding))
    return path


def opened_table(path: Path, **settings: Any) -> tuple[ImageSet, ManifestConfig]:
    config = ManifestConfig(path=path, **settings)
    return open_dataset(config, cache=path.parent / "cache", show=False), config


def test_a_csv_table_is_an_image_set(table: Path) -> None:
    rows = [(path, label, source, "9.99") for label, path, source in reversed(ROWS)]
    images, config = opened_table(
        write(table, rows, ("path", "label", "source", "price"), "utf-8-sig"), query_sources=("phone",)
    )
    assert {(item.label, item.key, item.source) for item in images.items} == set(ROWS)
    split = make_split(config, images)
    assert {images.items[i].source for i in split.test_query} == {"phone"}
    assert {images.items[i].source for i in split.test_gallery} == {"shop"}


def test_a_parquet_table_gives_the_same(table: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    csv_images, _ = opened_table(write(table, [(p, label, s) for label, p, s in ROWS], ("path", "label", "source")))
    columns = {"path": [r[1] for r in ROWS], "label": [r[0] for r in ROWS], "source": [r[2] for r in ROWS], "n": [1] * 15}
    pyarrow.parquet.write_table(pyarrow.table(columns), table.with_suffix(".parquet"))
    images, _ = opened_table(table.with_suffix(".parquet"))
    assert images.items == csv_images.items
    assert images.fingerprint == csv_images.fingerprint


def test_a_manifests_own_split_is_kept(table: Path) -> None:
    parts = ["train", "train", "validation", "test", "test"]
    rows = [(path, label, parts[int(label[1])]) for label, path, _ in ROWS]
    rows[9:12] = [(rows[9][0], "c3", "test_query"), (rows[10][0], "c3", "test_query"), (rows[11][0], "c3", "test_gallery")]
    images, config = opened_table(write(table, rows, ("path", "label", "split")))
    split = make_split(config, images)
    key = lambda indices: {images.items[i].key for i in indices}  # noqa: E731
    assert {images.items[i].label for i in split.train} == {"c0", "c1"}
    assert {images.items[i].label for i in split.validation_query} == {"c2"}
    assert {rows[9][0], rows[10][0]} <= key(split.test_query)
    assert rows[11][0] in key(split.test_gallery)
    assert {images.items[i].label for i in split.test_gallery} == {"c3", "c4"}


BAD_TABLES: dict[str, tuple[str, str]] = {
    "no label column": ("path,lable\na.png,x\n", "column label is missing; there are: path, lable"),
    "no header": ("", "column path and the column label is missing; there are: none"),
    "no rows": ("path,label\n", "lists no picture"),
    "empty cell": ("path,label\npictures/0.png,\n", "row 2: label is empty"),
    "short row": ("path,label\npictures/0.png,a\npictures/1.png\n", "row 3: label is empty"),
    "unknown split": (
        "path,label,split\npictures/0.png,a,trian\n",
        "row 2: split is 'trian'; it must be empty or one of: train",
    ),
    "no such picture": ("path,label\npictures/0.png,a\npictures/99.png,a\n", r"pictures/99\.png \(no such file\)"),
    "listed twice": ("path,label\npictures/0.png,a\npictures/0.png,b\n", r"pictures/0\.png is listed twice"),
    "split in part": ("path,label,split\npictures/0.png,a,train\npictures/1.png,a,\n", r"not for pictures/1\.png"),
    "class on two sides": (
        "path,label,split\npictures/0.png,a,train\npictures/1.png,a,test\n",
        "in train and in test at once: a; move each to one side",
    ),
    "nothing to test": ("path,label,split\npictures/0.png,a,train\npictures/1.png,a,train\n", "split is test nowhere"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_wrong_table_is_refused_with_the_place(case: str, table: Path) -> None:
    content, message = BAD_TABLES[case]
    table.write_text(content)
    with pytest.raises(DataError, match=message):
        opened_table(table)


def test_a_table_that_cannot_be_read_is_named(table: Path) -> None:
    with pytest.raises(DataError, match=r"table\.csv is no file; data\.path must name"):
        opened_table(table)
    table.write_bytes(b"path,label\n\xff\xfe,x\n")
    with pytest.raises(DataError, match=r"table\.csv cannot be read as CSV.*UTF-8"):
        opened_table(table)
    broken = table.with_suffix(".parquet")
    broken.write_bytes(b"PAR1 but not really PAR1")
    with pytest.raises(DataError, match=r"table\.parquet cannot be read as Parquet"):
        opened_table(broken)


def test_parquet_without_pyarrow_names_the_extra(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table.with_suffix(".parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"samespace\[train\]"):
        opened_table(table.with_suffix(".parquet"))


def test_a_pyarrow_that_does_not_fit_is_told_from_a_missing_one(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "pyarrow.py").write_text("raise ImportError('requires another NumPy')")
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    for name in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    table.with_suffix(".parquet").write_bytes(b"")
    with pytest.raises(
        ConfigError, match=r"pyarrow cannot be imported \(requires another NumPy\); install a version that fits"
    ):
        opened_table(table.with_suffix(".parquet"))


def test_a_source_that_is_not_there_is_named(table: Path) -> None:
    images, config = opened_table(write(table, [(p, label, s) for label, p, s in ROWS], ("path", "label", "source")))
    with pytest.raises(DataError, match="no picture has the source camera; there are: phone, shop"):
        make_split(config.model_copy(update={"query_sources": ("camera",)}), images)
