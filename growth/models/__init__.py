"""Reference models in Flax, each beside its blueprint."""

from growth.models.transformer import (
    Transformer,
    apply,
    blueprint,
    initial_parameters,
    logical_axes,
    logits,
    stream,
)

__all__ = [
    "Transformer",
    "apply",
    "blueprint",
    "initial_parameters",
    "logical_axes",
    "logits",
    "stream",
]
