"""Metrics over unit-norm embeddings and labels. NumPy only; per-query results, so that they can be bootstrapped and paired."""

from samespace.sdk.metrics.agreement import angle, cosine, max_angle, worst_percentile
from samespace.sdk.metrics.bootstrap import Estimate, bootstrap_mean, paired_bootstrap
from samespace.sdk.metrics.calibration import ScoreMap, fit_probability, fit_score_map
from samespace.sdk.metrics.compatibility import (
    average_accuracy,
    average_compatibility,
    compatibility_tax,
    update_gain,
)
from samespace.sdk.metrics.flips import negative_flips, relative_negative_flip_rate
from samespace.sdk.metrics.groups import adjusted_rand_index
from samespace.sdk.metrics.retrieval import average_precision, first_match_rank, neighbour_overlap, recall_at_k
from samespace.sdk.metrics.verification import pair_scores, tar_at_far, threshold_at_far

__all__ = [
    "Estimate",
    "ScoreMap",
    "adjusted_rand_index",
    "angle",
    "average_accuracy",
    "average_compatibility",
    "average_precision",
    "bootstrap_mean",
    "compatibility_tax",
    "cosine",
    "first_match_rank",
    "fit_probability",
    "fit_score_map",
    "max_angle",
    "negative_flips",
    "neighbour_overlap",
    "pair_scores",
    "paired_bootstrap",
    "recall_at_k",
    "relative_negative_flip_rate",
    "tar_at_far",
    "threshold_at_far",
    "update_gain",
    "worst_percentile",
]
