"""Which classes train, which validate, which test; and which pictures search for which.

Everything hangs on names alone (SHA-1 of class and key), never on the order of files: adding a class moves no other one.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from samespace.cloud.data.config import EmojiConfig, SplitConfig
from samespace.cloud.data.files import listed
from samespace.cloud.data.images import ImageSet, Item
from samespace.sdk.errors import DataError

__all__ = ["PARTS", "Split", "check_parts", "make_split"]

#: What ``Item.part`` (a manifest's column ``split``) may hold, if it holds anything.
PARTS = ("train", "validation", "validation_query", "validation_gallery", "test", "test_query", "test_gallery")

#: Classes that each side needs: of one class alone every search is right.
_LEAST = 2
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """Indices into ``ImageSet.items``. No class is in two of train, validation and test.

    Each query's class is in its gallery. The gallery also holds classes that nobody asks for.
    """

    train: tuple[int, ...]
    validation_query: tuple[int, ...]
    validation_gallery: tuple[int, ...]
    test_query: tuple[int, ...]
    test_gallery: tuple[int, ...]

    def summary(self, images: ImageSet) -> str:
        """Numbers of classes and pictures, on one line."""

        def classes(*parts: tuple[int, ...]) -> int:
            return len({images.items[index].label for part in parts for index in part})

        return (
            f"{images.name}: trains on {classes(self.train)} classes, {len(self.train)} pictures; "
            f"validates on {classes(self.validation_query, self.validation_gallery)} unseen classes, "
            f"{len(self.validation_query)} queries against {len(self.validation_gallery)}; "
            f"tests on {classes(self.test_query, self.test_gallery)} unseen classes, "
            f"{len(self.test_query)} queries against {len(self.test_gallery)}"
        )


def make_split(config: SplitConfig, images: ImageSet) -> Split:
    """Divide a set by class, then each side by source (or, where no sources are named, by picture).

    A class trains where ``sha1(name) % 100 < train_percent``; validation classes are split off the training classes by a
    second hash. A manifest's own split goes first; validation classes are split off its training classes where it has none.
    Very small sets are evened out so that at least two classes train and two test.

    Args:
        config: percentages and sources.
        images: what is to be split.

    Raises:
        DataError: fewer than four classes, a source that is not there, or no test query whose class is in the gallery.
    """
    items = images.items
    check_parts(images.name, items)
    train, validation, test = _classes(config, images)
    divide = _by_source(config, images) if config.query_sources or config.gallery_sources else _by_picture(config)
    validation_query, validation_gallery = _sides(items, validation, "validation", divide)
    test_query, test_gallery = _sides(items, test, "test", divide)
    for name, classes, query in (("validation", validation, validation_query), ("test", test, test_query)):
        if classes and not query:
            raise DataError(
                f"{images.name}: no {name} class has pictures on both sides, query and gallery: "
                "name other query_sources and gallery_sources, or add pictures"
            )
    chosen = tuple(index for index, item in enumerate(items) if item.label in train)
    return Split(chosen, validation_query, validation_gallery, test_query, test_gallery)


def check_parts(name: str, items: Sequence[Item]) -> None:
    """Raise :class:`DataError` where prescribed parts are filled in for some pictures only, or put a class on two sides."""
    if not any(item.part for item in items):
        return
    blank = [item.key for item in items if not item.part]
    if blank:
        raise DataError(
            f"{name}: split is filled in for some pictures but not for {listed(blank)}; fill it in for all, or for none"
        )
    labels = {side: {item.label for item in items if item.part.startswith(side)} for side in ("train", "validation", "test")}
    for one, other in itertools.combinations(labels, 2):
        both = sorted(labels[one] & labels[other])
        if both:
            raise DataError(
                f"{name}: classes are split, not pictures, so that figures are about unseen classes; in {one} and in {other} "
                f"at once: {listed(both)}; move each to one side, or leave the column split out"
            )
    for side in ("train", "test"):
        if not labels[side]:
            raise DataError(f"{name}: split is {side} nowhere; mark some pictures, or leave the column split out")


def _classes(config: SplitConfig, images: ImageSet) -> tuple[set[str], set[str], set[str]]:
    prescribed = {item.label: item.part.partition("_")[0] for item in images.items if item.part}
    labels = {item.label for item in images.items}
    if prescribed:
        train, validation, test = (
            {label for label, part in prescribed.items() if part == name} for name in ("train", "validation", "test")
        )
    else:
        if len(labels) < 2 * _LEAST:
            raise DataError(
                f"{images.name}: {len(labels)} classes are too few; it takes {2 * _LEAST}, "
                f"{_LEAST} to train and {_LEAST} unseen ones to test: add classes"
            )
        train = _draw(labels, config.train_percent, "")
        validation, test = set(), labels - train
    if not validation and config.validation_percent:
        if len(train) >= 2 * _LEAST:
            validation = _draw(train, config.validation_percent, "validation:")
            train -= validation
        else:
            _log.warning("%s: %d training classes are too few to split validation off; there is none", images.name, len(train))
    return train, validation, test


def _draw(labels: set[str], percent: int, salt: str) -> set[str]:
    """Those whose hash falls below ``percent``; at least two, and two are left."""
    drawn = {label for label in labels if _hash(salt + label) % 100 < percent}
    order = sorted(labels, key=lambda label: (_hash(salt + label) % 100, label))
    count = min(max(len(drawn), _LEAST), len(labels) - _LEAST)
    return drawn if count == len(drawn) else set(order[:count])


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha1(name.encode()).digest(), "big")


#: Indices of the pictures of one class -> (queries, gallery).
_Divide = Callable[[Sequence[int], Sequence[Item]], tuple[list[int], list[int]]]


def _by_source(config: SplitConfig, images: ImageSet) -> _Divide:
    there = {item.source for item in images.items}
    # The smaller sizes of the emoji leave styles out; anywhere else a name that is not there is a mistake.
    absent = sorted((set(config.query_sources) | set(config.gallery_sources)) - there)
    if absent and not isinstance(config, EmojiConfig):
        known = ", ".join(sorted(there - {""})) or "none"
        raise DataError(f"{images.name}: no picture has the source {', '.join(absent)}; there are: {known}")
    query = (set(config.query_sources) or there - set(config.gallery_sources)) & there
    gallery = (set(config.gallery_sources) or there - set(config.query_sources)) & there

    def divide(indices: Sequence[int], items: Sequence[Item]) -> tuple[list[int], list[int]]:
        return [i for i in indices if items[i].source in query], [i for i in indices if items[i].source in gallery]

    return divide


def _by_picture(config: SplitConfig) -> _Divide:
    def divide(indices: Sequence[int], items: Sequence[Item]) -> tuple[list[int], list[int]]:
        order = sorted(indices, key=lambda index: (_hash(items[index].key), items[index].key))
        count = min(max(1, len(order) * config.query_percent // 100), len(order) - 1)
        return sorted(order[:count]), sorted(order[count:])

    return divide


def _sides(items: Sequence[Item], labels: Iterable[str], part: str, divide: _Divide) -> tuple[tuple[int, ...], tuple[int, ...]]:
    members: dict[str, list[int]] = {label: [] for label in labels}
    for index, item in enumerate(items):
        if item.label in members:
            members[item.label].append(index)
    query: list[int] = []
    gallery: list[int] = []
    for indices in members.values():
        told = [i for i in indices if items[i].part in (f"{part}_query", f"{part}_gallery")]
        free = [i for i in indices if items[i].part not in (f"{part}_query", f"{part}_gallery")]
        asking, answering = divide(free, items) if free else ([], [])
        asking += [i for i in told if items[i].part.endswith("query")]
        answering += [i for i in told if items[i].part.endswith("gallery")]
        gallery += answering
        if answering:
            query += asking
    return tuple(sorted(query)), tuple(sorted(gallery))
