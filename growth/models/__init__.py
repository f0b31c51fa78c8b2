"""Reference models in Flax, each beside its blueprint."""

from growth.blueprints.reference import register_reference_model
from growth.models import reference
from growth.models.body import Model
from growth.models.reference import (
    apply,
    blueprint,
    initial_parameters,
    logical_axes,
    logits,
    make_model,
    residual_stream,
)
from growth.models.transformer import Transformer
from growth.models.vision import VisionTransformer

__all__ = [
    "Model",
    "Transformer",
    "VisionTransformer",
    "apply",
    "blueprint",
    "initial_parameters",
    "logical_axes",
    "logits",
    "make_model",
    "residual_stream",
]

register_reference_model(reference)
