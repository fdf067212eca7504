"""Retrieval metrics against slow, obvious references, on embeddings with many exact ties."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samespace.sdk.errors import ConfigError, DataError, EmbeddingError, SpaceMismatchError
from samespace.sdk.metrics import arrays, average_precision, first_match_rank, neighbour_overlap, recall_at_k

# The 16 corners of a 4-cube with edge 1 have norm 1, and their dot products are exact: ties are ties on every machine.
CORNERS = np.array(list(itertools.product((-0.5, 0.5), repeat=4)), np.float32)


@st.composite
def searches(draw):
    labels = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=30))
    gallery = CORNERS[draw(st.lists(st.integers(0, 15), min_size=len(labels), max_size=len(labels)))]
    query_labels = draw(st.lists(st.sampled_from(sorted(set(labels))), min_size=1, max_size=6))
    query = CORNERS[draw(st.lists(st.integers(0, 15), min_size=len(query_labels), max_size=len(query_labels)))]
    return query, gallery, query_labels, labels


def ranking(query_row, gallery, wanted, labels):
    """The gallery's labels in order of falling score; of equal scores the wrong labels come first."""
    order = sorted(range(len(gallery)), key=lambda i: (-float(query_row @ gallery[i]), labels[i] == wanted))
    return [labels[i] for i in order]


@given(searches(), st.integers(1, 30))
def test_recall_is_that_of_the_sorted_list(search, k):
    query, gallery, query_labels, labels = search
    k = min(k, len(labels))
    expected = [float(y in ranking(q, gallery, y, labels)[:k]) for q, y in zip(query, query_labels, strict=True)]
    assert recall_at_k(query, gallery, query_labels, labels, k).tolist() == expected


@given(searches())
def test_first_match_rank_is_that_of_the_sorted_list(search):
    query, gallery, query_labels, labels = search
    expected = [1 + ranking(q, gallery, y, labels).index(y) for q, y in zip(query, query_labels, strict=True)]
    assert first_match_rank(query, gallery, query_labels, labels).tolist() == expected


@given(searches())
def test_average_precision_is_the_mean_precision_at_each_hit(search):
    query, gallery, query_labels, labels = search
    for value, q, y in zip(average_precision(query, gallery, query_labels, labels), query, query_labels, strict=True):
        precisions, hits = [], 0
        for rank, label in enumerate(ranking(q, gallery, y, labels), start=1):
            if label == y:
                hits += 1
                precisions.append(hits / rank)
        assert value == pytest.approx(sum(precisions) / len(precisions), abs=1e-12)


@given(searches(), st.integers(0, 15), st.integers(1, 30))
def test_neighbour_overlap_compares_the_two_top_k_sets(search, other, k):
    query, gallery, _, _ = search
    k = min(k, len(gallery))
    moved = np.roll(CORNERS, other, axis=0)[[int(np.flatnonzero((q == CORNERS).all(1))[0]) for q in query]]

    def top(row):
        return set(sorted(range(len(gallery)), key=lambda i: (-float(row @ gallery[i]), i))[:k])

    expected = [len(top(a) & top(b)) / k for a, b in zip(query, moved, strict=True)]
    assert neighbour_overlap(query, moved, gallery, k).tolist() == expected


@given(searches(), st.randoms(use_true_random=False))
def test_the_order_of_the_gallery_does_not_matter(search, random):
    query, gallery, query_labels, labels = search
    order = list(range(len(labels)))
    random.shuffle(order)
    shuffled = (query, gallery[order], query_labels, [labels[i] for i in order])
    assert np.array_equal(first_match_rank(*search), first_match_rank(*shuffled))
    assert np.array_equal(average_precision(*search), average_precision(*shuffled))


@settings(max_examples=30)
@given(searches(), st.integers(1, 40))
def test_chunking_does_not_matter(search, scores_at_once):
    query, gallery, _, _ = search
    whole = (average_precision(*search), first_match_rank(*search), neighbour_overlap(query, query[::-1], gallery, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "_SCORES_AT_ONCE", scores_at_once)
        parts = (average_precision(*search), first_match_rank(*search), neighbour_overlap(query, query[::-1], gallery, 1))
    for a, b in zip(whole, parts, strict=True):
        assert np.array_equal(a, b)


def test_a_collapsed_model_is_not_rewarded():
    same = np.repeat(CORNERS[:1], 6, axis=0)
    labels = ["a", "b", "c", "d", "e", "f"]
    assert recall_at_k(same, same, labels, labels, 5).sum() == 0
    assert recall_at_k(same, same, labels, labels, 6).sum() == 6


def test_integer_and_string_labels_agree(random_units):
    query, gallery = random_units(8, 5), random_units(20, 5)
    q, g = np.arange(8) % 4, np.arange(20) % 4
    assert np.array_equal(
        average_precision(query, gallery, q, g), average_precision(query, gallery, q.astype(str), g.astype(str))
    )


def test_a_query_without_any_match_is_an_error(random_units):
    with pytest.raises(DataError, match=r"1 queries have no match.*zebra"):
        recall_at_k(random_units(2, 4), random_units(3, 4), ["a", "zebra"], ["a", "b", "b"], 1)


@pytest.mark.parametrize("k", [0, -1, 4])
def test_k_outside_the_gallery_is_an_error(random_units, k):
    with pytest.raises(ConfigError, match="between 1 and the 3 rows"):
        recall_at_k(random_units(2, 4), random_units(3, 4), ["a", "a"], ["a", "b", "b"], k)
    with pytest.raises(ConfigError, match="between 1 and the 3 rows"):
        neighbour_overlap(random_units(2, 4), random_units(2, 4), random_units(3, 4), k)


@pytest.mark.parametrize("poison", [np.nan, np.inf, 0.0, 7.0])
def test_rows_that_are_no_unit_vectors_are_named(random_units, poison):
    gallery = random_units(5, 4)
    gallery[3] = poison
    with pytest.raises(EmbeddingError, match=r"gallery: 1 of 5 rows.*row 3"):
        recall_at_k(random_units(1, 4), gallery, ["a"], ["a"] * 5, 1)


def test_other_dimensions_lengths_and_kinds_of_label_are_errors(random_units):
    with pytest.raises(SpaceMismatchError, match=r"4 dimensions.*6"):
        first_match_rank(random_units(1, 4), random_units(2, 6), ["a"], ["a", "b"])
    with pytest.raises(DataError, match="2 gallery embeddings need 2 gallery labels"):
        first_match_rank(random_units(1, 4), random_units(2, 4), ["a"], ["a"])
    with pytest.raises(DataError, match="use strings for both"):
        first_match_rank(random_units(1, 4), random_units(2, 4), [1], ["1", "2"])
    with pytest.raises(DataError, match="one has 2 rows, the other 3"):
        neighbour_overlap(random_units(2, 4), random_units(3, 4), random_units(5, 4), 1)
    with pytest.raises(DataError, match="shape"):
        first_match_rank(np.empty((0, 4), np.float32), random_units(2, 4), [], ["a", "b"])
