"""The ledger holds what a figure needs, and the documents quote nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from samespace.sdk.errors import ConfigError
from samespace.sdk.evidence import EvidenceRecord, commit_id, markdown_table, read_ledger, write_ledger

ROOT = Path(__file__).parents[2]


def record(**changes: object) -> EvidenceRecord:
    fields = {
        "id": "control",
        "claim": "models trained apart do not match",
        "bar": "R@1 <= 2 %",
        "measured": 0.4,
        "ci95": (0.1, 0.7),
        "n": 1998,
        "seeds": (0,),
        "holds": True,
        "device": "a machine",
        "command": "make demo",
        "commit": "abc",
    }
    return EvidenceRecord.model_validate(fields | changes)


def test_a_ledger_reads_back_as_written(tmp_path: Path) -> None:
    records = (record(), record(id="other", measured={"R@1": 44.0}, ci95=None))
    write_ledger(tmp_path / "ledger.json", records, note="more")
    assert read_ledger(tmp_path / "ledger.json") == records


def test_a_failed_claim_needs_its_reason() -> None:
    with pytest.raises(ValidationError, match="say why"):
        record(holds=False)
    assert "too few classes" in markdown_table([record(holds=False, reason="too few classes")])


def test_two_records_of_one_id_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="differ"):
        write_ledger(tmp_path / "ledger.json", [record(), record()])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "[]", '{"records": [{"id": 1}]}'])
def test_what_is_no_ledger_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "ledger.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"ledger\.json"):
        read_ledger(path)


def test_commit_outside_a_checkout_is_unknown(tmp_path: Path) -> None:
    assert commit_id(tmp_path) == "unknown"


def test_documents_quote_the_ledgers() -> None:
    result = subprocess.run([sys.executable, ROOT / "benchmarks" / "tables.py", "--check"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
