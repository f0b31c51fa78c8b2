"""growth: grow transformers while they train, without changing what they compute."""

from growth.architecture import Architecture, ArchitectureError
from growth.blueprint import Blueprint
from growth.certify import Certificate, CertificateError, certify
from growth.errors import InputError
from growth.expand import expand
from growth.notation import BlueprintError
from growth.optimizer import OptimizerStateError, expand_optimizer_state, register_optimizer_state
from growth.planning import GrowthError, GrowthPlan, plan
from growth.transformations import (
    Transformation,
    attention_expansion,
    compose,
    grow_to,
    head_addition,
    heads_expansion,
    hidden_dimension_expansion,
    layer_addition,
    mlp_expansion,
)

__all__ = [
    "Architecture",
    "ArchitectureError",
    "Blueprint",
    "BlueprintError",
    "Certificate",
    "CertificateError",
    "GrowthError",
    "GrowthPlan",
    "InputError",
    "OptimizerStateError",
    "Transformation",
    "attention_expansion",
    "certify",
    "compose",
    "expand",
    "expand_optimizer_state",
    "grow_to",
    "head_addition",
    "heads_expansion",
    "hidden_dimension_expansion",
    "layer_addition",
    "mlp_expansion",
    "plan",
    "register_optimizer_state",
]
