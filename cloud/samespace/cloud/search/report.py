"""``report.json``: what was asked for, what was found, and how sure it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from samespace.cloud.search.config import Search
from samespace.cloud.search.costs import CostTable
from samespace.cloud.search.evaluate import Pictures
from samespace.cloud.search.finalists import Finalist, Whole, prediction_error
from samespace.cloud.search.folder import SearchFolder
from samespace.cloud.search.memo import Candidate, Memo
from samespace.cloud.search.proxy import rank_correlation
from samespace.cloud.search.rewards import REWARDS
from samespace.cloud.training import TrainedRun
from samespace.cloud.training.partners import Founder
from samespace.edge.models.macs import count
from samespace.sdk.files import atomic_write

__all__ = ["write_report"]


def write_report(
    search: Search,
    where: SearchFolder,
    memo: Memo,
    candidates: Sequence[Candidate],
    table: CostTable,
    whole: Whole,
    finalists: Sequence[Finalist],
    front: Sequence[Candidate],
    pictures: Pictures,
    founder: Founder,
    runs: Mapping[int, TrainedRun],
    workers: int,
) -> dict[str, Any]:
    """Write the report and return it; shares are 0-1, recall@1."""
    good = [one for one in candidates if one.error is None]
    record = founder.model.record
    partner = count(founder.model.build(), record.preprocess.size)
    known = {one.key: one for one in candidates}
    ranked = [(memo.proxies[one.key], one.m_qg) for one in good if memo.proxies.get(one.key) is not None]
    report = {
        "search": search.resolved(),
        "partner": {
            "run": str(search.run),
            "model_id": record.model_id,
            "macs": partner.macs,
            "params": partner.params,
            "validation": {"m_gg": float(pictures.cloud_hits.mean())},
        },
        "space": {"architectures": search.space.size()},
        "validation": {"queries": len(pictures.query), "gallery": len(pictures.gallery), "metric": "recall@1"},
        "candidates": {
            "evaluated": len(candidates),
            "failed": len(candidates) - len(good),
            "per_minute": round(memo.per_minute, 1),
            "seconds": round(memo.seconds, 1),
            "workers": workers,
        },
        "proxy": {
            "pool": len(memo.proxies),
            "rank_correlation_with_m_qg": rank_correlation(*zip(*ranked, strict=True)) if ranked else None,
            "n": len(ranked),
        },
        "costs": {
            "machine": table.machine,
            "parts": len(table),
            "prediction_error": prediction_error([(known[key], real) for key, real in whole.known.items() if key in known]),
        },
        "winners": {one.name: _winner(one, partner.macs) for one in finalists},
        "front": [one.key for one in front],
        "retrained": _retrained(finalists, founder, runs),
    }
    atomic_write(where.report, json.dumps(report, indent=2, allow_nan=False) + "\n")
    return report


def _winner(one: Finalist, partner_macs: int) -> dict[str, Any]:
    found = one.candidate
    return {
        "rewards": list(one.rewards),
        "key": found.key,
        "architecture": found.architecture.model_dump(mode="json"),
        "macs": found.macs,
        "times_fewer_macs": round(partner_macs / found.macs, 2),
        "params": found.params,
        "validation": {
            "m_qq": found.m_qq,
            "m_qg": found.m_qg,
            "relative_negative_flips": found.relative_negative_flips,
            "rewards": {name: value(found) for name, value in REWARDS.items()},
        },
        "predicted": {"latency_ms": found.latency_ms, "file_bytes": found.file_bytes},
        "measured": one.measured._asdict(),
    }


def _retrained(finalists: Sequence[Finalist], founder: Founder, runs: Mapping[int, TrainedRun]) -> dict[str, Any]:
    """Winner -> split -> cells, one value a seed, and their means."""
    cloud = founder.model.name
    found: dict[str, Any] = {}
    for one in finalists if runs else ():
        found[one.name] = {}
        for split in ("validation", "test"):
            cells: dict[str, list[float]] = {}
            for run in runs.values():
                pairs: dict[str, tuple[str, str]] = {
                    "m_qq": (one.name, one.name),
                    "m_qg": (one.name, cloud),
                    "m_gg": (cloud, cloud),
                }
                if f"{one.name}-control" in run.records:
                    pairs["m_control"] = (f"{one.name}-control", f"{one.name}-control")
                for name, pair in pairs.items():
                    value = run.cell(*pair, split=split).metrics["recall@1"].value
                    cells.setdefault(name, []).append(value)
            means = {name: float(np.mean(values)) for name, values in cells.items()}
            retention = means["m_qg"] / means["m_gg"] if means["m_gg"] else None
            found[one.name][split] = {"mean": {**means, "retention": retention}, "by_seed": cells, "seeds": list(runs)}
    return found
