"""Table 1 of the paper, as data: what a new entry of each parameter is.

Every parameter has a role in the network. Along each axis that grows, its new entries are either
free (any value keeps the function) or fixed (one value keeps it), and some old entries are
multiplied. This table is the whole of the mathematics of growth; nothing else decides a value.

Exactly one side of every contraction is fixed to zero. So the new units do not change the function;
and yet the zero side has a gradient at the first step after growth, the free side at the second.

Source: Gesmundo & Maile, arXiv 2308.06103, section 3 and table 1; the mean fill that LayerNorm
needs, grouped heads and epsilon: see `growth.transformations` and `growth.planning`.
"""

import dataclasses

from growth.architecture import Architecture

# The axes that transformations grow, as blueprints name them.
AXES = ("embed", "kv_heads", "group", "qk", "v", "mlp", "layers")

FREE = "free"  # any value: the model's own initializer, or a copy of old entries plus noise
ZERO = "zero"
STREAM = "stream"  # what the residual stream holds in its new dimensions: ZERO, or MEAN
MEAN = "mean"  # the mean of the old entries along the axis


@dataclasses.dataclass(frozen=True)
class Role:
    """What growth does to a parameter.

    Attributes:
      embed, kv_heads, group, qk, v, mlp: what new entries along the axis are; None where a
        parameter of this role has no such axis.
      layers: what the parameter is in a new layer.
      scale: (axis, power): old entries are multiplied by (new size / old size) ** power, sizes of
        the axis.
    """

    embed: str | None = None
    kv_heads: str | None = None
    group: str | None = None
    qk: str | None = None
    v: str | None = None
    mlp: str | None = None
    layers: str | None = None
    scale: tuple[str, float] | None = None


# A bias has the role of its kernel, with fewer axes.
# fmt: off
ROLES: dict[str, Role] = {
    "embedding":     Role(embed=STREAM),
    "position":      Role(embed=STREAM),
    "norm_gain":     Role(embed=FREE, layers=FREE, scale=("embed", -0.5)),
    "norm_bias":     Role(embed=ZERO, layers=FREE),
    "query":         Role(embed=FREE, kv_heads=FREE, group=FREE, qk=FREE, layers=FREE),
    "key":           Role(embed=FREE, kv_heads=FREE, qk=ZERO, layers=FREE, scale=("qk", 0.5)),
    "value":         Role(embed=FREE, kv_heads=FREE, v=FREE, layers=FREE),
    "attention_out": Role(embed=STREAM, kv_heads=ZERO, group=ZERO, v=ZERO, layers=ZERO),
    "mlp_in":        Role(embed=FREE, mlp=FREE, layers=FREE),
    "mlp_out":       Role(embed=STREAM, mlp=ZERO, layers=ZERO),
    "unembed":       Role(embed=FREE),
}
# fmt: on


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
    return rule
