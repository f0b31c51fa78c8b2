"""growth: grow transformers while they train, without changing what they compute.

Everything here opens when it is first used: `import growth` imports neither JAX nor Flax.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from growth import architecture as architecture
    from growth import blueprints as blueprints
    from growth import certification as certification
    from growth import expansion as expansion
    from growth import huggingface as huggingface
    from growth import models as models
    from growth import optimizer as optimizer
    from growth import rules as rules
    from growth import training as training
    from growth.architecture import Architecture as Architecture
    from growth.architecture import ArchitectureError as ArchitectureError
    from growth.blueprints.blueprint import Blueprint as Blueprint
    from growth.blueprints.notation import BlueprintError as BlueprintError
    from growth.certification.certificate import Certificate as Certificate
    from growth.certification.certificate import CertificateError as CertificateError
    from growth.certification.certification import certify as certify
    from growth.errors import InputError as InputError
    from growth.expansion.parameters import expand as expand
    from growth.optimizer.state_expansion import OptimizerStateError as OptimizerStateError
    from growth.optimizer.state_expansion import expand_optimizer_state as expand_optimizer_state
    from growth.optimizer.state_fields import register_optimizer_state as register_optimizer_state
    from growth.rules.composition import compose as compose
    from growth.rules.composition import grow_to as grow_to
    from growth.rules.growth_plan import GrowthError as GrowthError
    from growth.rules.growth_plan import GrowthPlan as GrowthPlan
    from growth.rules.growth_plan import plan as plan
    from growth.rules.transformations import Transformation as Transformation
    from growth.rules.transformations import attention_expansion as attention_expansion
    from growth.rules.transformations import head_addition as head_addition
    from growth.rules.transformations import heads_expansion as heads_expansion
    from growth.rules.transformations import (
        hidden_dimension_expansion as hidden_dimension_expansion,
    )
    from growth.rules.transformations import layer_addition as layer_addition
    from growth.rules.transformations import mlp_expansion as mlp_expansion

# The module that defines each name, opened when the name is asked for (PEP 562).
_HOMES: dict[str, str] = {
    "Architecture": "growth.architecture",
    "ArchitectureError": "growth.architecture",
    "Blueprint": "growth.blueprints.blueprint",
    "BlueprintError": "growth.blueprints.notation",
    "Certificate": "growth.certification.certificate",
    "CertificateError": "growth.certification.certificate",
    "GrowthError": "growth.rules.growth_plan",
    "GrowthPlan": "growth.rules.growth_plan",
    "InputError": "growth.errors",
    "OptimizerStateError": "growth.optimizer.state_expansion",
    "Transformation": "growth.rules.transformations",
    "attention_expansion": "growth.rules.transformations",
    "certify": "growth.certification.certification",
    "compose": "growth.rules.composition",
    "expand": "growth.expansion.parameters",
    "expand_optimizer_state": "growth.optimizer.state_expansion",
    "grow_to": "growth.rules.composition",
    "head_addition": "growth.rules.transformations",
    "heads_expansion": "growth.rules.transformations",
    "hidden_dimension_expansion": "growth.rules.transformations",
    "layer_addition": "growth.rules.transformations",
    "mlp_expansion": "growth.rules.transformations",
    "plan": "growth.rules.growth_plan",
    "register_optimizer_state": "growth.optimizer.state_fields",
}

# Rooms that open as attributes of the package.
_ROOMS = (
    "architecture",
    "blueprints",
    "certification",
    "expansion",
    "huggingface",
    "models",
    "optimizer",
    "rules",
    "training",
)

__all__ = [*_HOMES, *_ROOMS, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _ROOMS:
        value = importlib.import_module(f"growth.{name}")
    elif name == "__version__":
        value = importlib.metadata.version("flax-growth")
    else:
        raise AttributeError(f"module 'growth' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
