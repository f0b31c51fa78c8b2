"""Table 1 of the paper, as data: what a new entry of each parameter is.

Every parameter has a role in the network. Along each axis that grows, its new entries are either
free (any value keeps the function) or fixed (one value keeps it), and some old entries are
multiplied. This table is the whole of the mathematics of growth; nothing else decides a value.

Exactly one side of every contraction is fixed to zero. So the new units do not change the function;
and yet the zero side has a gradient at the first step after growth, the free side at the second.

Source: Gesmundo & Maile, arXiv 2308.06103, section 3 and table 1; the mean fill that LayerNorm
needs, grouped heads and epsilon: see `growth.rules.transformations` and `growth.rules.growth_plan`.
"""

import dataclasses
import math
from collections.abc import Callable, Collection

from growth.architecture import Architecture

# The axes that transformations grow, as blueprints name them.
AXES = ("embed", "kv_heads", "group", "qk", "v", "mlp", "layers")

FREE = "free"  # any value: the model's own initializer, or a copy of old entries plus noise
ZERO = "zero"
STREAM = "stream"  # what the residual stream holds in its new dimensions: ZERO, or MEAN
MEAN = "mean"  # the mean of the old entries along the axis


def _always(architecture: Architecture) -> bool:
    return True


def _plain_products(architecture: Architecture) -> bool:
    """Whether products of queries and keys are divided by √qk_dim."""
    return architecture.query_scale is None and architecture.qk_norm == "none"


def _normed_products(architecture: Architecture) -> bool:
    return architecture.qk_norm != "none" and not architecture.fixed_norm_eps


def _without_gains(architecture: Architecture) -> bool:
    return not architecture.norm_gain


def _scaled_embedding(architecture: Architecture) -> bool:
    return architecture.scaled_embedding


def _scaled_tied(architecture: Architecture) -> bool:
    """Whether the output layer is a table of embeddings that shrinks as they are multiplied."""
    return architecture.scaled_embedding and architecture.tied_embeddings


def _unscaled_output(architecture: Architecture) -> bool:
    return not _scaled_tied(architecture)


def _without_final_gain(architecture: Architecture) -> bool:
    return not architecture.norm_gain and architecture.final_norm


def _fixed_epsilon(architecture: Architecture) -> bool:
    return architecture.fixed_norm_eps


def _fixed_epsilon_tied(architecture: Architecture) -> bool:
    return architecture.fixed_norm_eps and architecture.tied_embeddings


def _read_without_norm(architecture: Architecture) -> bool:
    return architecture.fixed_norm_eps and not architecture.final_norm


@dataclasses.dataclass(frozen=True)
class Scale:
    """Old entries are multiplied by (new size / old size) ** power, sizes of an axis.

    Attributes:
      axis: the axis.
      power: the power.
      when: in which architectures.
      biases: whether that includes arrays that have not this axis.
    """

    axis: str
    power: float
    when: Callable[[Architecture], bool] = _always
    biases: bool = False


@dataclasses.dataclass(frozen=True)
class Role:
    """What growth does to a parameter.

    Attributes:
      embed, kv_heads, group, qk, v, mlp: what new entries along the axis are; None where a
        parameter of this role has no such axis.
      layers: what the parameter is in a new layer.
      scale: by what old entries are multiplied.
    """

    embed: str | None = None
    kv_heads: str | None = None
    group: str | None = None
    qk: str | None = None
    v: str | None = None
    mlp: str | None = None
    layers: str | None = None
    scale: tuple[Scale, ...] = ()


# A norm's output grows by √(ĥ/h), since its mean square shrinks by h/ĥ. Its gain makes up for that;
# where it has none, what reads it does.
_GAIN = (Scale("embed", -0.5),)
_READER = (Scale("embed", -0.5, _without_gains),)
# A norm over queries or keys has the ε of the others, which shrinks by h/ĥ: so must their squares.
_QK = (*_READER, Scale("embed", -0.5, _normed_products, biases=True))
_KEY = (*_QK, Scale("qk", 0.5, _plain_products))  # products are divided by √k̂, not by √k
# Where ε is fixed, the stream grows by √(ĥ/h): then its mean square stays, and norms need the same
# gains. A tied embedding brings its factor to the logits, unless the final gain takes it back.
_WRITER = (Scale("embed", 0.5, _fixed_epsilon),)
_EMBEDDING = (*_WRITER, Scale("embed", -0.5, _scaled_embedding))  # multiplied by √ĥ, not by √h
_FINAL_GAIN = (Scale("embed", -0.5, _unscaled_output), Scale("embed", -0.5, _fixed_epsilon_tied))
_FINAL_BIAS = (Scale("embed", 0.5, _scaled_tied), Scale("embed", -0.5, _fixed_epsilon_tied))
_UNEMBED = (Scale("embed", -0.5, _without_final_gain), Scale("embed", -0.5, _read_without_norm))

# A bias has the role of its kernel, with fewer axes.
# fmt: off
ROLES: dict[str, Role] = {
    "embedding":     Role(embed=STREAM, scale=_EMBEDDING),
    "position":      Role(embed=STREAM, scale=_WRITER),
    "norm_gain":     Role(embed=FREE, layers=FREE, scale=_GAIN),
    "norm_bias":     Role(embed=ZERO, layers=FREE),
    "final_gain":    Role(embed=FREE, scale=_FINAL_GAIN),
    "final_bias":    Role(embed=ZERO, scale=_FINAL_BIAS),
    "closing_gain":  Role(embed=FREE, layers=ZERO, scale=_GAIN),
    "closing_bias":  Role(embed=ZERO, layers=ZERO),
    "query":         Role(embed=FREE, kv_heads=FREE, group=FREE, qk=FREE, layers=FREE, scale=_QK),
    "key":           Role(embed=FREE, kv_heads=FREE, qk=ZERO, layers=FREE, scale=_KEY),
    "qk_norm":       Role(kv_heads=FREE, group=FREE, qk=FREE, layers=FREE),
    "value":         Role(embed=FREE, kv_heads=FREE, v=FREE, layers=FREE, scale=_READER),
    "attention_out": Role(
        embed=STREAM, kv_heads=ZERO, group=ZERO, v=ZERO, layers=ZERO, scale=_WRITER
    ),
    "mlp_in":        Role(embed=FREE, mlp=FREE, layers=FREE, scale=_READER),
    "mlp_out":       Role(embed=STREAM, mlp=ZERO, layers=ZERO, scale=_WRITER),
    "unembed":       Role(embed=FREE, scale=_UNEMBED),
    # A number for each head and each distance (T5), added to products of queries and keys.
    "position_bias": Role(kv_heads=FREE, group=FREE, layers=FREE),
    # Chooses among several MLPs, the experts, each of which grows as any MLP.
    "router":        Role(embed=FREE, layers=FREE, scale=_READER),
}
# fmt: on

# Where a kernel's free entries are multiplied with entries that are all zero: along these axes
# zeros on both sides would never learn. (New dimensions of the stream are also read by others.)
FACES_ZERO: dict[str, tuple[str, ...]] = {
    "query": ("qk",),
    "value": ("kv_heads", "v", "layers"),
    "mlp_in": ("mlp", "layers"),
}

# The gains of norms over the stream; where they are stored as w for 1 + w, zero is −1.
GAINS = ("norm_gain", "final_gain", "closing_gain")


def fill(role: str, axis: str, architecture: Architecture) -> str:
    """What new entries of a parameter are along an axis: FREE, ZERO or MEAN.

    Args:
      role: a key of `ROLES`.
      axis: one of `AXES` that the role has.
      architecture: the architecture that grows; its norm decides what `STREAM` is.
    """
    layernorm = architecture.norm == "layernorm"
    if role == "unembed" and layernorm and not architecture.final_norm:
        # It reads the stream itself, whose new dimensions hold the mean of the old ones: only a
        # norm subtracts that, so here the reader is the zero side.
        return ZERO
    rule = getattr(ROLES[role], axis)
    if rule == STREAM:
        return MEAN if layernorm else ZERO
    if axis == "layers" and architecture.closes_branches and role in ("attention_out", "mlp_out"):
        return FREE  # the gain of the norm behind it is zero
    return rule


def factor(
    role: str, architecture: Architecture, axes: Collection[str], growth: Callable[[str], float]
) -> float:
    """By what old entries of a parameter are multiplied.

    Args:
      role: a key of `ROLES`.
      architecture: the architecture that grows.
      axes: the axes that the array has.
      growth: gives the ratio of the new size of an axis to the old.
    """
    scales = (s for s in ROLES[role].scale if s.when(architecture) and (s.biases or s.axis in axes))
    return math.prod(growth(scale.axis) ** scale.power for scale in scales)


def offset(role: str, architecture: Architecture) -> float:
    """What is added to a stored value where the model uses it."""
    return float(architecture.unit_offset and role in GAINS)
