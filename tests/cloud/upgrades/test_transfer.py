"""Thresholds and groups that an app built on the old model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from samespace.cloud.upgrades import Generation, Pictures
from samespace.cloud.upgrades.transfer import form_groups, group_transfer, threshold_transfer

Make = Callable[..., Generation]


def test_shares_of_accepted_pairs_are_counted_one_by_one(generation: Make, pictures: Pictures) -> None:
    old, new = generation("old", 1.2, 0), generation("new", 0.8, 1)
    labels = pictures.queries["class"]
    moved = threshold_transfer((old.query, old.gallery), (new.query, old.gallery), labels, pictures.gallery, far=0.01)
    counts = np.zeros((2, 2))
    for i, label in enumerate(labels):
        for j, other in enumerate(pictures.gallery):
            same = int(label == other)
            counts[same] += [float(new.query[i] @ old.gallery[j]) >= moved.threshold, 1]
    assert moved.far_new.value == pytest.approx(counts[0, 0] / counts[0, 1])
    assert moved.tar_new.value == pytest.approx(counts[1, 0] / counts[1, 1])
    assert moved.far_old.value <= 0.01
    assert moved.far_new.low <= moved.far_new.value <= moved.far_new.high


def test_the_advised_threshold_gives_the_rate_again(generation: Make, pictures: Pictures) -> None:
    """New queries score higher against everything: the old threshold lets too many in, the advised one does not."""
    old = generation("old", 1.2, 0)
    # Every query leans towards where the whole gallery lies.
    lean = old.query + 1.0 * old.gallery.mean(axis=0) / np.linalg.norm(old.gallery.mean(axis=0))
    gallery = old.gallery + 0.6 * old.gallery.mean(axis=0) / np.linalg.norm(old.gallery.mean(axis=0))
    new, rows = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (lean, gallery))
    labels = pictures.queries["class"]
    moved = threshold_transfer((old.query, rows), (new, rows), labels, pictures.gallery, far=0.01)
    assert moved.far_new.value > 2 * moved.far_old.value
    again = threshold_transfer((new, rows), (new, rows), labels, pictures.gallery, far=0.01)
    assert moved.advised == again.threshold
    assert moved.tar_advised == again.tar_old


def test_groups_of_a_perfect_model_are_the_classes(generation: Make, pictures: Pictures) -> None:
    perfect = generation("perfect", 0.05, 0)
    groups = form_groups(perfect.gallery, 0.9)
    assert len(set(groups)) == len(set(pictures.gallery))
    sides = (perfect.query, perfect.gallery)
    moved = group_transfer(sides, sides, perfect.gallery, pictures.queries["class"], pictures.gallery, 0.9)
    assert moved.agreement == moved.truth_old == moved.truth_new == 1
    assert moved.rule_error_old.value == moved.rule_error_new.value == 0


def test_groups_do_not_survive_a_model_of_another_space(generation: Make, pictures: Pictures) -> None:
    old, other = generation("old", 0.3, 0), generation("other", 0.3, 1, space=5)
    labels = pictures.queries["class"], pictures.gallery
    moved = group_transfer((old.query, old.gallery), (other.query, old.gallery), other.gallery, *labels, 0.7)
    assert moved.rule_error_old.value < 0.1
    assert moved.rule_error_new.value > 0.9, "new photos cannot be put to yesterday's groups"
    assert moved.agreement > 0.9, "though the new model alone groups the gallery as well"


def test_a_class_without_a_group_is_right_to_join_none(generation: Make, pictures: Pictures) -> None:
    perfect = generation("perfect", 0.05, 0)
    labels = list(pictures.queries["class"])
    kept = [place for place, name in enumerate(pictures.gallery) if name != "class 0"]
    gallery = perfect.gallery[kept]
    names = [pictures.gallery[place] for place in kept]
    moved = group_transfer((perfect.query, gallery), (perfect.query, gallery), gallery, labels, names, 0.9)
    assert moved.rule_error_new.value == 0
