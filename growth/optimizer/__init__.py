"""Optimizer states grow with the parameters, and what happens to new entries after growth."""

from growth.optimizer.post_growth import GrowthEvent, Rewarming, correct_by_age, rewarm
from growth.optimizer.state_expansion import expand_optimizer_state
from growth.optimizer.state_fields import KEEP, LAST, PARAMETERS, STATE, register_optimizer_state
from growth.optimizer.state_form import OptimizerStateError

__all__ = [
    "KEEP",
    "LAST",
    "PARAMETERS",
    "STATE",
    "GrowthEvent",
    "OptimizerStateError",
    "Rewarming",
    "correct_by_age",
    "expand_optimizer_state",
    "register_optimizer_state",
    "rewarm",
]
