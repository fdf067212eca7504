"""The emoji set: what is fetched, rendered, merged and kept; and what is said when that is not possible."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import stat
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from samespace.cloud.data import EmojiConfig, ImageSet, cache_folder, make_split
from samespace.cloud.data.emoji import SIZES, merge_identical, open_emoji
from samespace.cloud.data.emoji_styles import STYLES, attribution
from samespace.cloud.data.npm import fetch, read_json, tarball_name
from samespace.cloud.data.parallel import shown
from samespace.cloud.data.render import Drawing, render
from samespace.sdk.errors import ConfigError, DataError, MissingExtraError
from samespace.sdk.preprocess import Preprocess

CI = EmojiConfig(size="ci")


# The real set


def test_the_ci_size_has_120_classes_in_six_styles_that_can_query_and_be_searched(emoji_ci: ImageSet) -> None:
    assert len({item.label for item in emoji_ci.items}) == 120
    assert {item.source for item in emoji_ci.items} == set(SIZES["ci"].styles)
    split = make_split(CI, emoji_ci)
    assert {emoji_ci.items[i].source for i in split.test_query} <= set(CI.query_sources)
    assert {emoji_ci.items[i].source for i in split.test_gallery} <= set(CI.gallery_sources)
    assert len(split.test_query) >= 64, "a bundle's probes are test queries"


def test_no_picture_is_there_twice_and_none_is_blank(emoji_ci: ImageSet) -> None:
    pixels = [np.asarray(emoji_ci.load(index)) for index in range(len(emoji_ci.items))]
    assert len({p.tobytes() for p in pixels}) == len(pixels)
    assert all(np.ptp(p) > 0 for p in pixels)
    assert {p.shape for p in pixels} == {(64, 64, 3)}


def test_what_a_device_gets_is_what_training_sees(emoji_ci: ImageSet) -> None:
    preprocess = Preprocess(size=32)
    for index in (0, 17, len(emoji_ci.items) - 1):
        np.testing.assert_array_equal(preprocess(emoji_ci.encoded(index)), preprocess(emoji_ci.load(index)))


def test_a_second_opening_needs_neither_npm_nor_the_renderer_and_gives_the_same(
    emoji_ci: ImageSet, lasting_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("samespace.cloud.data.emoji.render", None)
    again = open_emoji(CI, cache=lasting_cache, show=False)
    assert again.items == emoji_ci.items
    assert again.fingerprint == emoji_ci.fingerprint


@pytest.mark.parametrize("style", SIZES["ci"].styles)
def test_licence_and_author_are_what_the_package_says(style: str, emoji_ci: ImageSet, lasting_cache: Path) -> None:
    tarball = lasting_cache / "npm" / tarball_name(f"@iconify-json/{style}", STYLES[style].version)
    info = read_json(tarball, "info.json")
    assert STYLES[style].licence == info["license"]["spdx"]
    assert (STYLES[style].title, STYLES[style].author, STYLES[style].url) == (
        info["name"],
        info["author"]["name"],
        info["author"]["url"],
    )
    assert f"{info['name']} by {info['author']['name']}, {info['license']['spdx']}" in emoji_ci.attribution


def test_the_attribution_has_a_line_for_each_style() -> None:
    lines = attribution().splitlines()[1:]
    assert len(lines) == len(STYLES)
    assert all(style.author in line and style.licence in line for style, line in zip(STYLES.values(), lines, strict=True))


# How classes are made, on packages drawn for the purpose


def square(colour: str, x: int = 2) -> dict[str, Any]:
    return {"body": f'<rect x="{x}" y="2" width="8" height="8" fill="{colour}"/>'}


def package(cache: Path, style: str, icons: dict[str, Any], aliases: dict[str, Any] | None = None) -> Path:
    path = cache / "npm" / tarball_name(f"@iconify-json/{style}", STYLES[style].version)
    path.parent.mkdir(parents=True, exist_ok=True)
    members = {
        "package.json": {"name": style},
        "icons.json": {"prefix": style, "width": 16, "height": 16, "icons": icons, "aliases": aliases or {}},
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            data = json.dumps(content).encode()
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


COLOURS = {
    "noto": "#700",
    "twemoji": "#070",
    "openmoji": "#007",
    "fluent-emoji": "#770",
    "fluent-emoji-flat": "#077",
    "emojione": "#707",
}


def drawn(cache: Path, changes: dict[str, tuple[dict[str, Any], dict[str, Any]]]) -> ImageSet:
    """Six styles that all draw "Apple" and "big-pear", each in its colour, plus ``changes`` (icons, aliases) by style."""
    for style, colour in COLOURS.items():
        icons, aliases = changes.get(style, ({}, {}))
        package(cache, style, {"Apple": square(colour), "big-pear": square(colour, 5), **icons}, aliases)
    return open_emoji(CI, cache=cache, workers=1, show=False)


def everywhere(icons: dict[str, int]) -> dict[str, Any]:
    """Icons (name -> place) that every style draws, so that the ci size takes them."""
    return {style: ({name: square(colour, x) for name, x in icons.items()}, {}) for style, colour in COLOURS.items()}


def found(images: ImageSet) -> set[tuple[str, str]]:
    return {(item.source, item.label) for item in images.items}


def test_names_are_compared_by_letters_and_digits(tmp_path: Path) -> None:
    changes: dict[str, Any] = {style: ({"RedHeart_2": square(colour, 4)}, {}) for style, colour in COLOURS.items()}
    changes["noto"] = ({"red-heart2": square(COLOURS["noto"], 4)}, {})
    images = drawn(tmp_path, changes)
    assert {label for _, label in found(images)} == {"Apple", "big-pear", "red-heart2"}
    assert len(images.items) == 18


def test_skin_tones_and_bare_digits_are_no_classes(tmp_path: Path) -> None:
    images = drawn(tmp_path, everywhere({"hand-dark-skin-tone": 3, "7": 6, "keycap-7": 1}))
    assert {label for _, label in found(images)} == {"Apple", "big-pear", "keycap-7"}


def test_an_alias_draws_its_parents_icon_mirrored_where_it_says_so(tmp_path: Path) -> None:
    body = '<rect x="0" y="0" width="4" height="16" fill="currentColor"/>'
    changes = everywhere({"left-bar": 1})
    icons, _ = changes["twemoji"]
    del icons["left-bar"]
    changes["twemoji"] = (
        {**icons, "bar": {"body": body}},
        {"left-bar": {"parent": "middle"}, "middle": {"parent": "bar", "hFlip": True}},
    )
    images = drawn(tmp_path, changes)
    (index,) = [i for i, item in enumerate(images.items) if (item.source, item.label) == ("twemoji", "left-bar")]
    pixels = np.asarray(images.load(index))
    assert pixels[:, 48:].max() == 0, "the bar is black, and on the right"
    assert pixels[:, :47].min() == 255


def test_a_drawing_that_is_not_square_keeps_its_aspect(tmp_path: Path) -> None:
    changes = everywhere({"wide": 1})
    changes["noto"][0]["wide"] = {"body": '<rect width="32" height="16" fill="#000"/>', "width": 32, "height": 16}
    images = drawn(tmp_path, changes)
    (index,) = [i for i, item in enumerate(images.items) if (item.source, item.label) == ("noto", "wide")]
    dark = (np.asarray(images.load(index)) < 128).all(-1)
    assert dark.sum() == 64 * 32
    assert dark[16:48].all()


def test_classes_that_share_a_picture_become_one_and_equal_pictures_one(tmp_path: Path) -> None:
    changes = everywhere({"flag-a": 1, "flag-b": 6})
    changes["openmoji"][0]["flag-b"] = changes["openmoji"][0]["flag-a"]
    changes["emojione"][0]["flag-a"] = changes["noto"][0]["flag-a"]
    images = drawn(tmp_path, changes)
    assert {label for _, label in found(images)} == {"Apple", "big-pear", "flag-a"}
    flags = [item for item in images.items if item.label == "flag-a"]
    assert len(flags) == 12 - 2
    assert ("emojione/flag-a") not in {item.key for item in flags}, "of equal pictures the first style's is kept"


def test_blank_pictures_are_left_out_and_merge_nothing(tmp_path: Path) -> None:
    changes = everywhere({"ghost": 1, "snow": 6})
    for name in ("ghost", "snow"):
        changes["twemoji"][0][name] = square("#fff")
    images = drawn(tmp_path, changes)
    assert {label for _, label in found(images)} == {"Apple", "big-pear", "ghost", "snow"}
    assert ("twemoji", "ghost") not in found(images)


def test_the_order_of_icons_in_the_packages_does_not_matter(tmp_path: Path) -> None:
    changes = everywhere({"a": 1, "b": 3, "c": 6})
    backwards = {style: (dict(reversed(icons.items())), aliases) for style, (icons, aliases) in changes.items()}
    one, other = drawn(tmp_path / "one", changes), drawn(tmp_path / "other", backwards)
    assert one.items == other.items
    assert one.fingerprint == other.fingerprint


def test_a_damaged_cache_is_rendered_again(tmp_path: Path) -> None:
    images = drawn(tmp_path, {})
    (path,) = (tmp_path / "emoji").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    assert drawn(tmp_path, {}).fingerprint == images.fingerprint
    assert [p.name for p in (tmp_path / "emoji").iterdir()] == [path.name], "no temporary file stays behind"


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=30))
def test_merging_agrees_with_a_slow_reference(pictures: list[tuple[int, int]]) -> None:
    names = [f"class-{a}" for a, _ in pictures]
    digests = [bytes([b]) for _, b in pictures]
    labels, keep = merge_identical(names, digests)
    # Reference: let labels sink to the smallest neighbour until nothing moves.
    slow = {name: name for name in names}
    for _ in names:
        for i, j in itertools.product(range(len(names)), repeat=2):
            if digests[i] == digests[j] or names[i] == names[j]:
                slow[names[i]] = slow[names[j]] = min(slow[names[i]], slow[names[j]])
    assert labels == [slow[name] for name in names]
    assert keep == [i for i in range(len(digests)) if digests[i] not in digests[:i]]


# What can go wrong


def fake_npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "bin" / "npm"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!{sys.executable}\nimport sys\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(path.parent))


def test_a_missing_npm_is_named_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"npm is not installed.*apt-get install npm.*brew install node"):
        open_emoji(CI, cache=tmp_path / "cache", show=False)
    assert not (tmp_path / "cache").exists()


def test_a_missing_renderer_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"samespace\[train\]"):
        open_emoji(CI, cache=tmp_path, show=False)


def test_what_npm_says_is_passed_on_and_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_npm(tmp_path, 'print("npm error code E404 no such version", file=sys.stderr); sys.exit(1)', monkeypatch)
    with pytest.raises(DataError, match=r"@iconify-json/[a-z-]+@.*E404 no such version.*check the network"):
        open_emoji(CI, cache=tmp_path / "cache", show=False)
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == []


def test_a_tarball_that_was_cut_off_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = package(tmp_path / "registry", "noto", {"apple": square("#700")})
    kept = tmp_path / "cache" / good.name
    kept.parent.mkdir()
    kept.write_bytes(good.read_bytes()[:50])
    copy = f"import shutil; shutil.copy({str(good)!r}, sys.argv[sys.argv.index('--pack-destination') + 1])"
    fake_npm(tmp_path, copy, monkeypatch)
    assert fetch("@iconify-json/noto", STYLES["noto"].version, kept.parent) == kept
    assert kept.read_bytes() == good.read_bytes()
    monkeypatch.setenv("PATH", "")
    assert fetch("@iconify-json/noto", STYLES["noto"].version, kept.parent) == kept


def test_a_fetched_tarball_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import os\n"
        "open(os.path.join(sys.argv[sys.argv.index('--pack-destination') + 1], 'thing-1.0.0.tgz'), 'wb').write(b'<html>')"
    )
    fake_npm(tmp_path, script, monkeypatch)
    with pytest.raises(DataError, match="cannot be read"):
        fetch("thing", "1.0.0", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_package_without_icons_names_the_file(tmp_path: Path) -> None:
    path = package(tmp_path, "noto", {})
    with pytest.raises(DataError, match=rf"{path.name}: nothing.json cannot be read.*delete the file"):
        read_json(path, "nothing.json")


def test_a_drawing_that_cannot_be_rendered_is_named() -> None:
    drawings = [
        Drawing("noto/apple", "<svg xmlns='http://www.w3.org/2000/svg' width='8' height='8'/>"),
        Drawing("noto/x", "<x"),
    ]
    with shown("", 2, False) as bar, pytest.raises(DataError, match="noto/x cannot be rendered"):
        render(drawings, 8, 2, bar)


def test_a_renderer_that_dies_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "render_worker.py").write_text("raise SystemExit(7)")
    monkeypatch.setattr("samespace.cloud.data.render.__file__", str(tmp_path / "render.py"))
    with shown("", 1, False) as bar, pytest.raises(DataError, match=r"noto/apple cannot be rendered.*exit code 7"):
        render([Drawing("noto/apple", "<svg/>")], 8, 1, bar)


def test_an_unknown_size_in_the_environment_names_the_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMESPACE_SIZE", "tiny")
    with pytest.raises(ConfigError, match="'tiny' is no size; set it to one of: ci, small, full"):
        EmojiConfig()
    monkeypatch.setenv("SAMESPACE_SIZE", "small")
    assert EmojiConfig().size == "small"
    monkeypatch.delenv("SAMESPACE_SIZE")
    assert EmojiConfig().size == "full"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query_sources": ("noto-v1",)}, "family noto"),
        ({"query_sources": ("noto",)}, "noto cannot be both"),
        ({"gallery_sources": ("windows",)}, "no such style: windows; there are noto"),
        ({"gallery_sources": ()}, "at least one style"),
        ({"sise": "ci"}, "sise"),
    ],
)
def test_a_wrong_setting_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EmojiConfig(size="ci", **arguments)


def test_classes_are_hashed_by_name(emoji_ci: ImageSet) -> None:
    split = make_split(CI.model_copy(update={"validation_percent": 0}), emoji_ci)
    trained = {emoji_ci.items[i].label for i in split.train}
    for label in {item.label for item in emoji_ci.items}:
        assert (int(hashlib.sha1(label.encode()).hexdigest(), 16) % 100 < 60) == (label in trained)


def test_the_cache_folder_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMESPACE_CACHE_DIR", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("SAMESPACE_CACHE_DIR")
    assert cache_folder().name == "samespace"
