"""Optimizer states grow with the parameters."""

from growth.optimizer.state_expansion import OptimizerStateError, expand_optimizer_state
from growth.optimizer.state_fields import KEEP, LAST, PARAMETERS, STATE, register_optimizer_state

__all__ = [
    "KEEP",
    "LAST",
    "PARAMETERS",
    "STATE",
    "OptimizerStateError",
    "expand_optimizer_state",
    "register_optimizer_state",
]
