"""Co-training: one call trains the tiers of a recipe into a run's folder, and resumes what was interrupted."""

from samespace.cloud.training.log import read_log
from samespace.cloud.training.results import TrainedRun
from samespace.cloud.training.run import RunDirectory
from samespace.cloud.training.train import train

__all__ = ["RunDirectory", "TrainedRun", "read_log", "train"]
