"""Reference models in Flax, each beside its blueprint."""

from growth.models.transformer import (
    Transformer,
    blueprint,
    initial_parameters,
    logical_axes,
    logits,
)

__all__ = ["Transformer", "blueprint", "initial_parameters", "logical_axes", "logits"]
