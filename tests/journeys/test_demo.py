"""Journeys 1 and 2 end to end: what `make demo` runs, at CI size."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from samespace.sdk.evidence import read_ledger

pytestmark = [pytest.mark.export, pytest.mark.database, pytest.mark.timeout(900)]


def test_the_report_has_every_claim_with_its_evidence(demo: tuple[Path, str]) -> None:
    records = {record.id: record for record in read_ledger(demo[0] / "report.json")}
    assert {"control", "compatible", "exports", "table"} <= set(records)
    assert all(record.n > 0 and record.seeds and record.command for record in records.values())


def test_exported_artifacts_agree_with_their_torch_models_at_any_size(demo: tuple[Path, str]) -> None:
    # The other claims are about retrieval quality, which the CI size is too small for; this one is about correctness.
    exports = next(record for record in read_ledger(demo[0] / "report.json") if record.id == "exports")
    assert exports.holds, exports.reason


def test_the_table_has_a_row_for_every_model_and_artifact(demo: tuple[Path, str]) -> None:
    table = json.loads((demo[0] / "report.json").read_text())["table"]
    names = [row["name"] for row in table]
    assert len(set(names)) == len(names)
    for tier in ("phone", "watch"):
        for artifact in ("onnx-fp32", "tflite-fp32", "coreml-fp16"):
            assert any(tier in name and artifact in name for name in names), f"no row for {tier} {artifact} among {names}"
    assert all(row["recall1"]["low"] <= row["recall1"]["value"] <= row["recall1"]["high"] for row in table)
    assert all(row["n"] >= 200 or row["n"] == table[0]["n"] for row in table)


def test_the_page_is_self_contained(demo: tuple[Path, str]) -> None:
    page = (demo[0] / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)


def test_it_prints_what_a_user_would_type(demo: tuple[Path, str]) -> None:
    for command in ("train", "keys new", "export", "check", "gallery serve", "gallery add", "gallery search"):
        assert f"$ samespace {command}" in demo[1]
