"""Compatibility-aware quantisation: int8 is chosen by what it costs in the shared space."""

from samespace.export.quantisation.calibration import CalibrationSet, Pictures, calibration_pictures
from samespace.export.quantisation.choose import Search, choose_int8
from samespace.export.quantisation.judge import Aim, HeldOut, Judgement
from samespace.export.quantisation.layers import LayerQuantiser
from samespace.export.quantisation.mixed import Mixed, keep_worst_in_float
from samespace.export.quantisation.sensitivity import LayerCost, sensitivity
from samespace.export.quantisation.trials import Trial, Trials

__all__ = [
    "Aim",
    "CalibrationSet",
    "HeldOut",
    "Judgement",
    "LayerCost",
    "LayerQuantiser",
    "Mixed",
    "Pictures",
    "Search",
    "Trial",
    "Trials",
    "calibration_pictures",
    "choose_int8",
    "keep_worst_in_float",
    "sensitivity",
]
