"""How the configs of several families say the same thing."""

from collections.abc import Callable
from typing import Any

from growth.huggingface.config_keys import FamilyError, shown
from growth.huggingface.family import USUAL_NAMES, Config

LAYERNORM_NAMES = {
    name: "layer_norm_eps" if name == "norm_eps" else key
    for name, key in USUAL_NAMES.items()
    if name not in ("head_dim", "num_kv_heads")
}

_ACTIVATIONS = {
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu_exact",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu",
}

_ATTENTION = ("query", "key", "value", "attention_out")
_MLP = ("mlp_in", "mlp_out")


def activation(name: str) -> str:
    """The activation function of an architecture, by its name in transformers."""
    if name not in _ACTIVATIONS:
        raise FamilyError(
            f"config.json says the activation {shown(name)}, but known are "
            f"{', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def all_or_no_biases(attention: bool, mlp: bool) -> tuple[str, ...]:
    """The parts that have a bias, where all layers of attention agree, and all of the MLP."""
    return _ATTENTION * bool(attention) + _MLP * bool(mlp)


def windows(
    config: Config, window: int | None, slides: Callable[[int], bool]
) -> tuple[int | None, ...]:
    """The window of each layer.

    Args:
      config: the config; where it lists the attention of each layer, that counts.
      window: the window of layers that slide; None where all see everything.
      slides: whether a layer slides, where the config does not list it.
    """
    number = config["num_hidden_layers"]
    types: list[str] | None = config.get("layer_types")
    if types is None:
        types = ["sliding_attention" if slides(i) else "full_attention" for i in range(number)]
    known = ("sliding_attention", "full_attention")
    if len(types) != number or set(types) - set(known):
        raise FamilyError(
            f"layer_types is {shown(types)} for {number} layers, but there must be one for each, "
            f"{' or '.join(known)}"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def windowed(config: Config) -> dict[str, Any]:
    """The fields of a Llama without biases that may see a window, the same in all layers."""
    return dict(
        activation=activation(config["hidden_act"]),
        tied_embeddings=config["tie_word_embeddings"],
        window=config["sliding_window"],
    )


def window_above(config: Config) -> tuple[int | None, ...]:
    """The window of each layer, where layers from `max_window_layers` on slide (Qwen)."""
    window = config["sliding_window"] if config["use_sliding_window"] else None
    return windows(config, window, lambda layer: layer >= config["max_window_layers"])
