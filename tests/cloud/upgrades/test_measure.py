"""What a report says of a chain of models, against what the metrics say one by one."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from samespace.cloud.upgrades import Generation, Pictures, measure_chain, read_report
from samespace.cloud.upgrades.report import REPORT_VERSION
from samespace.sdk.errors import ConfigError, DataError, FormatVersionError, SamespaceError
from samespace.sdk.metrics import average_precision, recall_at_k

Make = Callable[..., Generation]


def test_every_pair_of_the_chain_is_measured(generation: Make, pictures: Pictures) -> None:
    chain = [generation(f"g{t}", noise, t) for t, noise in enumerate((1.6, 1.3, 1.0, 0.7))]
    report = measure_chain(chain, pictures)
    labels = list(pictures.queries["class"])
    for q, query in enumerate(chain):
        for g, gallery in enumerate(chain):
            expected = average_precision(query.query, gallery.gallery, labels, labels).mean()
            assert report.cell(q, g).map.value == pytest.approx(expected)
    first = recall_at_k(chain[-1].query, chain[-2].gallery, labels, labels)
    assert list(report.outcomes.new.recall1) == first.tolist()
    assert report.old.model_id == "model-g2"
    assert report.new.model_id == "model-g3"
    table = np.asarray(report.table("map"))
    assert report.compatibility["map"] == np.mean([table[t, k] > table[k, k] for t in range(4) for k in range(t)])
    assert report.accuracy["map"] == pytest.approx(table[np.tril_indices(4)].mean())
    assert not report.gain, "without a control nobody knows what could have been gained"


def test_a_control_tells_gain_and_tax(generation: Make, pictures: Pictures) -> None:
    old, new, free = generation("old", 1.6, 0), generation("new", 1.0, 1), generation("free", 0.8, 2, space=9)
    report = measure_chain([old, new], pictures, control=free)
    assert report.control is not None
    assert report.control.own.recall1.value > 0.5
    assert report.control.old.recall1.value < 0.2, "a model of another space finds nothing in the old gallery"
    old_old, new_old, new_new = (report.cell(*pair).map.value for pair in ((0, 0), (1, 0), (1, 1)))
    own = report.control.own.map.value
    assert report.gain["map"] == pytest.approx((new_old - old_old) / (own - old_old))
    assert report.tax["map"] == pytest.approx(own - new_new)


def test_a_wider_successor_is_compared_on_the_coordinates_of_the_old(generation: Make, pictures: Pictures) -> None:
    old, new = generation("old", 0.9, 0, dim=8), generation("new", 0.6, 1, dim=16)
    for one, other in ((old, new), (new, old)):
        report = measure_chain([one, other], pictures)
        assert report.cell(1, 0).map.value > 0.3
        assert report.groups is not None


def test_a_report_survives_its_file(generation: Make, pictures: Pictures) -> None:
    report = measure_chain([generation("old", 1.2, 0), generation("new", 0.8, 1)], pictures, reproduce="again")
    assert read_report(report.model_dump_json().encode()) == report


@pytest.mark.parametrize("damage", [lambda text: text[:-20], lambda text: text.replace('"n"', '"m"'), lambda text: "[]"])
def test_a_damaged_report_is_refused_by_name(generation: Make, pictures: Pictures, damage: Callable[[str], str]) -> None:
    text = measure_chain([generation("old", 1.2, 0), generation("new", 0.8, 1)], pictures).model_dump_json()
    with pytest.raises(ConfigError, match=r"mine\.json: is no upgrade report"):
        read_report(damage(text).encode(), "mine.json")


def test_outcomes_of_some_queries_only_are_refused(generation: Make, pictures: Pictures) -> None:
    """A report that shows the queries that got better, and hides the others."""
    report = measure_chain([generation("old", 1.2, 0), generation("new", 0.8, 1)], pictures)
    content = report.model_dump(mode="json")
    content["outcomes"]["new"]["map"] = content["outcomes"]["new"]["map"][:-1]
    with pytest.raises(SamespaceError, match="one value a query"):
        read_report(json.dumps(content).encode())


def test_a_newer_report_says_so(generation: Make, pictures: Pictures) -> None:
    report = measure_chain([generation("old", 1.2, 0), generation("new", 0.8, 1)], pictures)
    text = report.model_dump_json().replace(f'"version":{REPORT_VERSION}', '"version":99,"later":1')
    with pytest.raises(FormatVersionError, match="version 99"):
        read_report(text.encode())


def test_one_model_is_no_upgrade(generation: Make, pictures: Pictures) -> None:
    with pytest.raises(DataError, match="two models"):
        measure_chain([generation("old", 1.2, 0)], pictures)
