"""Maps between spaces that are fitted after training, when nobody can retrain."""

from samespace.cloud.adapters.linear import fit_low_rank, fit_ridge
from samespace.cloud.adapters.network import NetworkSettings, fit_network
from samespace.cloud.adapters.pair import Pair, PairSettings, fit_pair
from samespace.cloud.adapters.procrustes import apply_procrustes, fit_procrustes

__all__ = [
    "NetworkSettings",
    "Pair",
    "PairSettings",
    "apply_procrustes",
    "fit_low_rank",
    "fit_network",
    "fit_pair",
    "fit_procrustes",
    "fit_ridge",
]
