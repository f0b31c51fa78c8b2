"""Optimizer states grow with the parameters."""

from growth.optimizer.expand import OptimizerStateError, expand_optimizer_state
from growth.optimizer.table import KEEP, LAST, PARAMETERS, STATE, register_optimizer_state

__all__ = [
    "KEEP",
    "LAST",
    "PARAMETERS",
    "STATE",
    "OptimizerStateError",
    "expand_optimizer_state",
    "register_optimizer_state",
]
