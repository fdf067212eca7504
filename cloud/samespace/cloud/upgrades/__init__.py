"""Upgrades of a model that serves: measured, judged, planned. No torch but where a run is read."""

from samespace.cloud.upgrades.generations import report_of
from samespace.cloud.upgrades.measure import Generation, Pictures, measure_chain
from samespace.cloud.upgrades.report import UpgradeReport, read_report
from samespace.cloud.upgrades.verdict import Bars, Finding, Verdict, judge, judge_old_queries

__all__ = [
    "Bars",
    "Finding",
    "Generation",
    "Pictures",
    "UpgradeReport",
    "Verdict",
    "judge",
    "judge_old_queries",
    "measure_chain",
    "read_report",
    "report_of",
]
