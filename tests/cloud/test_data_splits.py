"""Splits: by class, by hash, disjoint, answerable."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samespace.cloud.data import ArrayImages, Item, Split, SplitConfig, make_split
from samespace.sdk.errors import DataError


def image_set(items: list[Item]) -> ArrayImages:
    return ArrayImages("set", items, np.zeros((len(items), 2, 2, 3), np.uint8))


def uniform(classes: int, each: int = 3, sources: tuple[str, ...] = ("",)) -> list[Item]:
    return [Item(f"c{c}/{n}", f"c{c}", sources[n % len(sources)]) for c in range(classes) for n in range(each)]


def labels(images: ArrayImages, indices: tuple[int, ...]) -> set[str]:
    return {images.items[index].label for index in indices}


def check(images: ArrayImages, split: Split) -> None:
    """What must hold for every split."""
    train = labels(images, split.train)
    validation = labels(images, split.validation_gallery) | labels(images, split.validation_query)
    test = labels(images, split.test_gallery) | labels(images, split.test_query)
    assert not train & validation
    assert not train & test
    assert not validation & test
    for query, gallery in ((split.validation_query, split.validation_gallery), (split.test_query, split.test_gallery)):
        assert not set(query) & set(gallery)
        assert labels(images, query) <= labels(images, gallery)
    assert len(train) >= 2
    assert len(test) >= 2
    assert split.test_query


def test_a_class_trains_where_its_hash_says_so() -> None:
    images = image_set(uniform(300))
    split = make_split(SplitConfig(validation_percent=0), images)
    assert labels(images, split.train) == {
        f"c{c}" for c in range(300) if int(hashlib.sha1(f"c{c}".encode()).hexdigest(), 16) % 100 < 60
    }
    assert split.validation_query == split.validation_gallery == ()


def test_validation_classes_come_out_of_the_training_classes_and_leave_the_test_alone() -> None:
    images = image_set(uniform(300))
    without, with_ = (make_split(SplitConfig(validation_percent=percent), images) for percent in (0, 20))
    assert with_.test_query == without.test_query
    assert with_.test_gallery == without.test_gallery
    validation = labels(images, with_.validation_gallery)
    assert labels(images, with_.train) | validation == labels(images, without.train)
    assert 0.1 < len(validation) / len(labels(images, without.train)) < 0.3


@given(st.integers(4, 40), st.integers(2, 5), st.integers(1, 99), st.integers(0, 50), st.integers(1, 99), st.integers(0, 2**32))
def test_every_split_is_by_class_disjoint_and_answerable(
    classes: int, each: int, train: int, validation: int, query: int, seed: int
) -> None:
    config = SplitConfig(train_percent=train, validation_percent=validation, query_percent=query)
    items = uniform(classes, each)
    images = image_set(items)
    split = make_split(config, images)
    check(images, split)
    # The order of the items has no say.
    shuffled = list(items)
    random.Random(seed).shuffle(shuffled)
    other = image_set(shuffled)
    again = make_split(config, other)
    for part in ("train", "validation_query", "validation_gallery", "test_query", "test_gallery"):
        assert {items[i].key for i in getattr(split, part)} == {shuffled[i].key for i in getattr(again, part)}


@given(st.integers(5, 60))
def test_one_class_more_moves_no_other(classes: int) -> None:
    config = SplitConfig(validation_percent=0)
    few, many = image_set(uniform(100)), image_set(uniform(100 + classes))
    before, after = make_split(config, few), make_split(config, many)
    assert labels(few, before.train) <= labels(many, after.train)
    assert labels(few, before.test_gallery) <= labels(many, after.test_gallery)


def test_sources_never_stand_on_both_sides() -> None:
    images = image_set(uniform(40, 6, ("phone", "tablet", "shop")))
    config = SplitConfig(query_sources=("phone", "tablet"), gallery_sources=("shop",))
    split = make_split(config, images)
    check(images, split)
    assert {images.items[i].source for i in split.test_query} == {"phone", "tablet"}
    assert {images.items[i].source for i in split.test_gallery} == {"shop"}
    assert {images.items[i].source for i in split.train} == {"phone", "tablet", "shop"}, "all of them train"


@pytest.mark.parametrize(
    "config", [SplitConfig(query_sources=("phone",)), SplitConfig(gallery_sources=("shop", "tablet"))], ids=["query", "gallery"]
)
def test_one_named_side_leaves_the_rest_to_the_other(config: SplitConfig) -> None:
    images = image_set(uniform(40, 6, ("phone", "tablet", "shop")))
    split = make_split(config, images)
    assert {images.items[i].source for i in split.test_query} == {"phone"}
    assert {images.items[i].source for i in split.test_gallery} == {"shop", "tablet"}


def test_a_query_that_nothing_answers_is_left_out_and_a_distractor_stays() -> None:
    items = uniform(40, 2, ("phone", "shop"))
    asked_only = Item("lonely/0", "lonely", "phone")
    shown_only = Item("extra/0", "extra", "shop")
    images = image_set([*items, asked_only, shown_only])
    config = SplitConfig(train_percent=1, validation_percent=0, query_sources=("phone",), gallery_sources=("shop",))
    split = make_split(config, images)
    check(images, split)
    assert {"lonely", "extra"} & labels(images, split.train) == set()
    assert "lonely" not in labels(images, split.test_query)
    assert "extra" in labels(images, split.test_gallery)


def test_no_answerable_query_at_all_is_an_error() -> None:
    items = [Item(f"c{c}/{n}", f"c{c}", "phone" if c % 2 else "shop") for c in range(20) for n in range(2)]
    config = SplitConfig(query_sources=("phone",), gallery_sources=("shop",))
    with pytest.raises(DataError, match=r"no (test|validation) class has pictures on both sides"):
        make_split(config, image_set(items))


def test_the_summary_counts_classes_and_pictures() -> None:
    images = image_set(uniform(50, 4))
    split = make_split(SplitConfig(), images)
    summary = split.summary(images)
    assert f"trains on {len(labels(images, split.train))} classes, {len(split.train)} pictures" in summary
    assert f"{len(split.test_query)} queries against {len(split.test_gallery)}" in summary


def test_an_array_of_pictures_must_fit_its_items(tmp_path: Path) -> None:
    items = uniform(4)
    with pytest.raises(DataError, match="11 items for 12 pictures"):
        ArrayImages("set", items[:-1], np.zeros((12, 2, 2, 3), np.uint8))
    with pytest.raises(DataError, match="uint8, not float32"):
        ArrayImages("set", items, np.zeros((12, 2, 2, 3), np.float32))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="c0/0 is listed twice"):
        ArrayImages("set", [items[0], *items[:-1]], np.zeros((12, 2, 2, 3), np.uint8))
