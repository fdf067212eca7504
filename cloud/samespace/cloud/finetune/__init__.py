"""Linear quadratic fine-tuning: adapting a released model to one's own images by a convex problem."""

from samespace.cloud.finetune.exact import Solution, solve
from samespace.cloud.finetune.fit import Fitted, fit
from samespace.cloud.finetune.linear import Linearised
from samespace.cloud.finetune.problem import Problem
from samespace.cloud.finetune.release import released

__all__ = ["Fitted", "Linearised", "Problem", "Solution", "fit", "released", "solve"]
