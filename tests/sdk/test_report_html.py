"""The page of a report: all of it in one file, nothing of it from elsewhere, and what a stranger writes stays text."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from samespace.sdk.check import AppDevice, CompatibilityReport, Gate, Settings, measure
from samespace.sdk.check.html import page
from samespace.sdk.errors import ConfigError

QUICK = Settings(n_boot=300)
VOID = {"meta", "br", "img", "line", "polyline"}


class Reader(HTMLParser):
    """Text, tags and attributes; complains of tags that do not fit."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        # html may stay open, as the standard allows.
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def reports(toy, tmp_path_factory):
    """A good one, one with channels swapped, one without embeddings, one of an app with tensors."""
    folder = tmp_path_factory.mktemp("html")
    graphs = {"good": toy.graph(toy.edge), "bgr": toy.graph(toy.edge, bgr=True), "nan": toy.graph(toy.edge * np.nan)}
    made = {name: measure(toy.bundle(folder / name, graph), settings=QUICK) for name, graph in graphs.items()}
    golden = toy.preprocess.batch(toy.images)
    app = AppDevice(toy.embed(toy.images, toy.edge), golden[..., ::-1], "phone")
    return made | {"app": measure(toy.bundle(folder / "app"), device=app, settings=QUICK)}


def judged(report):
    return report, Gate.of(report).judge(report)


def test_the_page_shows_verdict_numbers_reasons_and_the_command(reports):
    checks = [judged(report) for report in reports.values()]
    read = Reader(page(checks))
    assert read.open == ["html"]
    for report, verdict in checks:
        assert report.title in read.text
        for finding in verdict.findings:
            assert finding.message in read.text
        assert report.reproduce in read.text
        for case in report.cases:
            assert f"probe {case.probe}" in read.text
    assert "1 of 4 checks passed" in read.text
    assert reports["good"].retrieval.recall[1].device.text() in read.text


def test_nothing_comes_from_elsewhere(reports):
    text = page([judged(report) for report in reports.values()])
    read = Reader(text)
    assert not {"script", "link", "iframe", "object", "form"} & set(read.tags)
    for tag, name, value in read.attributes:
        assert not name.startswith("on")
        if name in ("src", "href"):
            assert value.startswith("data:image/" if tag == "img" else "#")
    assert not re.search(r"url\(|@import|https?://", text)
    assert "default-src 'none'" in text


def test_cases_are_pictures_with_what_each_side_found(reports, toy):
    bad = reports["bgr"]
    lost = [case for case in bad.cases if any("right by the reference" in why for why in case.why)]
    assert lost
    probes = toy.probe_set()
    for case in lost:
        assert case.reference[0].label == case.label == toy.labels[case.probe]
        assert case.device[0].label != case.label
        scores = probes.reference[case.probe] @ probes.gallery.T
        assert case.reference[0].item == str(scores.argmax())
        assert case.reference[0].score == pytest.approx(scores.max())
        assert [found.score for found in case.reference] == sorted((found.score for found in case.reference), reverse=True)
    read = Reader(page([judged(bad)]))
    images = [value for tag, name, value in read.attributes if (tag, name) == ("img", "src")]
    assert len(images) == len(bad.cases)
    assert f"✓ {lost[0].label}" in read.text
    assert f"✗ {lost[0].device[0].label}" in read.text


def test_tensors_that_differ_are_shown_beside_the_golden_ones(reports):
    images = [value for tag, name, value in Reader(page([judged(reports["app"])])).attributes if (tag, name) == ("img", "alt")]
    shown = [alt.partition(", ")[2] for alt in images if alt.startswith(f"probe {reports['app'].cases[0].probe},")]
    assert shown == ["as it should be", "on the device", "difference, amplified"]
    assert "again with" not in Reader(page([judged(reports["app"])])).text


def test_what_a_stranger_wrote_stays_text(reports):
    nasty = "<script>alert(1)</script>'\"$about${x}"
    case = reports["bgr"].cases[0]
    found = tuple(item.model_copy(update={"label": nasty}) for item in case.device)
    changes = {"bundle": nasty, "model": nasty, "device": nasty, "reproduce": nasty, "samespace": nasty, "signer": nasty}
    changes["cases"] = (case.model_copy(update={"label": nasty, "device": found, "why": (nasty,)}),)
    changes["refused"] = nasty
    read = Reader(page([judged(reports["bgr"].model_copy(update=changes))]))
    assert "script" not in read.tags
    assert read.text.count(nasty) >= 6
    content = json.loads(reports["bgr"].model_dump_json())
    for picture in ("https://example.org/x.png", 'data:image/png;base64,AAAA" onload="alert(1)', "data:text/html;base64,AAAA"):
        content["cases"][0]["pictures"] = {"golden": picture}
        with pytest.raises(ConfigError, match="golden"):
            CompatibilityReport.parse(json.dumps(content), "report.json")


def test_a_report_of_version_1_is_shown_and_judged(reports):
    content = json.loads(reports["good"].model_dump_json())
    content["format_version"] = 1
    del content["cases"], content["diagnosis"], content["retrieval"]["hard"], content["settings"]["hard_share"]
    old = CompatibilityReport.parse(json.dumps(content), "old.json")
    verdict = Gate.of(old).judge(old)
    assert verdict.outcome == "pass"
    assert not [finding for finding in verdict.findings if finding.check.startswith("hard")]
    read = Reader(page([(old, verdict)]))
    assert "passed" in read.text
    assert "img" not in read.tags


def test_the_same_reports_make_the_same_page(reports):
    checks = [judged(report) for report in reports.values()]
    again = [
        (CompatibilityReport.parse(report.model_dump_json(), "x.json"), Gate.of(report).judge(report))
        for report in reports.values()
    ]
    assert page(checks) == page(again)
