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
from collections.abc import Callable, Collection, Mapping

from growth.architecture import Architecture

FREE = "free"  # any value: the model's own initializer, or a copy of old entries plus noise
ZERO = "zero"
MEAN = "mean"  # the mean of the old entries along the axis
RESIDUAL = "residual"  # what the residual stream holds in its new dimensions: ZERO, or MEAN

# Where an entry is new along several axes, the first of these is what it is. A free axis has the
# first word: all that it adds is read by nothing old.
PRECEDENCE = (FREE, ZERO, MEAN)


def _always(architecture: Architecture) -> bool:
    return True


def _plain_products(architecture: Architecture) -> bool:
    """Whether products of queries and keys are divided by √qk_dim."""
    return architecture.query_scale is None and architecture.qk_norm == "none"


def _normed_products(architecture: Architecture) -> bool:
    return architecture.qk_norm != "none" and not architecture.fixed_norm_eps


def _without_gains(architecture: Architecture) -> bool:
    return not architecture.norm_gain


def _larger_input(architecture: Architecture) -> bool:
    """Whether what layers read grows by √(ĥ/h), with no gain of a norm to make up for it."""
    reads_stream = architecture.norm_placement == "closing"
    return not architecture.norm_gain or (architecture.fixed_norm_eps and reads_stream)


def _scaled_embedding(architecture: Architecture) -> bool:
    return architecture.scaled_embedding


def _scaled_tied(architecture: Architecture) -> bool:
    """Whether the output layer is a table of embeddings that shrinks as they are multiplied."""
    return architecture.scaled_embedding and architecture.tied_embeddings


def _unscaled_output(architecture: Architecture) -> bool:
    return not _scaled_tied(architecture)


def _has_final_gain(architecture: Architecture) -> bool:
    return architecture.final_norm and architecture.norm_gain


def _scaled_logits(architecture: Architecture) -> bool:
    return architecture.scaled_logits


def _scaled_logits_without_gain(architecture: Architecture) -> bool:
    return architecture.scaled_logits and not _has_final_gain(architecture)


def _without_final_gain(architecture: Architecture) -> bool:
    return not architecture.norm_gain and architecture.final_norm


def _fixed_epsilon(architecture: Architecture) -> bool:
    return architecture.fixed_norm_eps


def _following_epsilon(architecture: Architecture) -> bool:
    return not architecture.fixed_norm_eps


def _fixed_epsilon_tied(architecture: Architecture) -> bool:
    return architecture.fixed_norm_eps and architecture.tied_embeddings


def _read_without_norm(architecture: Architecture) -> bool:
    return architecture.fixed_norm_eps and not architecture.final_norm


def final_gain_differs(architecture: Architecture) -> bool:
    """Whether the gain of the final norm is multiplied otherwise than that of any other norm."""
    arch = architecture
    return _scaled_tied(arch) or _fixed_epsilon_tied(arch) or _scaled_logits(arch)


def output_differs(architecture: Architecture) -> bool:
    """Whether it matters to growth if the output layer is the embedding."""
    arch = architecture
    return not _has_final_gain(arch) or arch.scaled_embedding or arch.fixed_norm_eps


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
      fills: for each axis that a parameter of this role has, what new entries along it are; for
        "layers", what the parameter is in a new layer.
      scales: by what old entries are multiplied.
    """

    fills: Mapping[str, str]
    scales: tuple[Scale, ...] = ()


def _role(scales: tuple[Scale, ...] = (), **fills: str) -> Role:
    return Role(fills, scales)


# A norm's output grows by √(ĥ/h), since its mean square shrinks by h/ĥ. Its gain makes up for that;
# where it has none, what reads it does.
_GAIN = (Scale("embed", -0.5),)
_READER = (Scale("embed", -0.5, _larger_input),)
# A norm over queries or keys has the ε of the others, which shrinks by h/ĥ: so must their squares.
_PROBE_QUERY = (Scale("embed", -0.5, _normed_products, biases=True),)
_QK = (*_READER, *_PROBE_QUERY)
_KEY = (*_QK, Scale("qk", 0.5, _plain_products))  # products are divided by √k̂, not by √k
# Where ε is fixed, the stream grows by √(ĥ/h): then its mean square stays, and norms need the same
# gains. A tied embedding brings its factor to the logits, unless the final gain takes it back.
_WRITER = (Scale("embed", 0.5, _fixed_epsilon),)
# A norm that writes to the stream reads what has grown by √(ĥ/h), and so gives as much more itself.
_CLOSING_GAIN = (Scale("embed", -0.5, _following_epsilon),)
_EMBEDDING = (*_WRITER, Scale("embed", -0.5, _scaled_embedding))  # multiplied by √ĥ, not by √h
# Logits are divided by √ĥ, not by √h: the last gain makes up for it, or what reads behind it.
_LOGITS = (Scale("embed", 0.5, _scaled_logits),)
_FINAL_GAIN = (
    Scale("embed", -0.5, _unscaled_output),
    Scale("embed", -0.5, _fixed_epsilon_tied),
    *_LOGITS,
)
_FINAL_BIAS = (
    Scale("embed", 0.5, _scaled_tied),
    Scale("embed", -0.5, _fixed_epsilon_tied),
    *_LOGITS,
)
_UNEMBED = (
    Scale("embed", -0.5, _without_final_gain),
    Scale("embed", -0.5, _read_without_norm),
    Scale("embed", 0.5, _scaled_logits_without_gain),
)
_STREAM_UNEMBED = (Scale("embed", -0.5, _fixed_epsilon), *_LOGITS)

# A bias has the role of its kernel, with fewer axes.
# fmt: off
ROLES: dict[str, Role] = {
    "embedding":     _role(embed=RESIDUAL, scales=_EMBEDDING),
    "position":      _role(embed=RESIDUAL, scales=_WRITER),
    "norm_gain":     _role(embed=FREE, layers=FREE, scales=_GAIN),
    "norm_bias":     _role(embed=ZERO, layers=FREE),
    "final_gain":    _role(embed=FREE, scales=_FINAL_GAIN),
    "final_bias":    _role(embed=ZERO, scales=_FINAL_BIAS),
    # Of a norm whose output enters the stream: at the end of a branch, or after the embedding.
    "closing_gain":  _role(embed=FREE, layers=ZERO, scales=_CLOSING_GAIN),
    "closing_bias":  _role(embed=ZERO, layers=ZERO, scales=_WRITER),
    "query":         _role(embed=FREE, kv_heads=FREE, group=FREE, qk=FREE, layers=FREE, scales=_QK),
    "key":           _role(embed=FREE, kv_heads=FREE, qk=ZERO, layers=FREE, scales=_KEY),
    "qk_norm":       _role(kv_heads=FREE, group=FREE, qk=FREE, layers=FREE),
    "value":         _role(embed=FREE, kv_heads=FREE, v=FREE, layers=FREE, scales=_READER),
    "attention_out": _role(
        embed=RESIDUAL, kv_heads=ZERO, group=ZERO, v=ZERO, layers=ZERO, scales=_WRITER
    ),
    "mlp_in":        _role(embed=FREE, mlp=FREE, embed_units=FREE, layers=FREE, scales=_READER),
    "mlp_out":       _role(
        embed=RESIDUAL, mlp=ZERO, embed_units=ZERO, layers=ZERO, scales=_WRITER
    ),
    # A gain for each dimension of what a branch adds (LayerScale).
    "branch_gain":   _role(embed=FREE, layers=FREE),
    "unembed":       _role(embed=FREE, embed_units=ZERO, scales=_UNEMBED),
    # A number for each head and each distance (T5), added to products of queries and keys.
    "position_bias": _role(kv_heads=FREE, group=FREE, layers=FREE),
    # Attention pooling: one learned query, which no norm has touched, reads keys and values of the
    # stream. What reads the result without a norm is a `stream_unembed`.
    "probe":         _role(embed=ZERO),
    "probe_query":   _role(embed=FREE, kv_heads=FREE, group=FREE, qk=FREE, scales=_PROBE_QUERY),
    "stream_unembed": _role(embed=FREE, scales=_STREAM_UNEMBED),
    # Chooses among several MLPs, the experts, each of which grows as any MLP.
    "router":        _role(embed=FREE, layers=FREE, scales=_READER),
}
# fmt: on

# Where a kernel's free entries are multiplied with entries that are all zero: along these axes
# zeros on both sides would never learn. (New dimensions of the stream are also read by others.)
FACES_ZERO: dict[str, tuple[str, ...]] = {
    "query": ("qk",),
    "probe_query": ("qk",),
    "value": ("kv_heads", "v", "layers"),
    "mlp_in": ("mlp", "embed_units", "layers"),
}

# The gains of norms over the stream; where they are stored as w for 1 + w, zero is −1.
GAINS = ("norm_gain", "final_gain", "closing_gain")


def fill(role: str, axis: str, architecture: Architecture) -> str:
    """What new entries of a parameter are along an axis: FREE, ZERO or MEAN.

    Args:
      role: a key of `ROLES`.
      axis: an axis that the role has.
      architecture: the architecture that grows; its norm decides what `RESIDUAL` is.
    """
    layernorm = architecture.norm == "layernorm"
    reads_stream = role == "stream_unembed" or (role == "unembed" and not architecture.final_norm)
    if reads_stream and layernorm:
        # It reads the stream itself, whose new dimensions hold the mean of the old ones: only a
        # norm subtracts that, so here the reader is the zero side.
        return ZERO
    rule = ROLES[role].fills[axis]
    if rule == RESIDUAL:
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
    scales = (
        s for s in ROLES[role].scales if s.when(architecture) and (s.biases or s.axis in axes)
    )
    return math.prod(growth(scale.axis) ** scale.power for scale in scales)


def offset(role: str, architecture: Architecture) -> float:
    """What is added to a stored value where the model uses it."""
    return float(architecture.unit_offset and role in GAINS)
