"""The axes that can grow, one row each.

A blueprint names them, a rule says for each what new entries are, a transformation grows them. What
anything else needs to know of an axis stands in its row here.
"""

import dataclasses

from growth.architecture import LAYER_FIELDS, Architecture


@dataclasses.dataclass(frozen=True)
class Axis:
    """An axis that grows.

    Attributes:
      name: its name in blueprints and rules.
      field: the field of `Architecture` that says how long it is.
      transformation: the transformation that adds entries along it.
      per_layer: whether layers may differ in it. If so, it is an attribute of a `LayerShape`.
      words: what one entry along it is, for people.
      size: the attribute that is its length, where that is not `field`.
    """

    name: str
    field: str
    transformation: str
    per_layer: bool
    words: str
    size: str = ""

    def length(self, architecture: Architecture, layer: int = 0) -> int:
        """How many entries there are, in one layer where layers may differ."""
        owner = architecture.layers[layer] if self.per_layer else architecture
        return getattr(owner, self.size or self.field)


# Where an entry is new along several axes that are free, the first of them here says how it is
# initialized: a new layer's units are those of a new layer.
TABLE: tuple[Axis, ...] = (
    Axis("layers", "num_layers", "layer_addition", False, "layer"),
    Axis("kv_heads", "num_kv_heads", "head_addition", True, "group of heads"),
    Axis("group", "num_heads", "head_addition", True, "query of a group", "queries_per_group"),
    Axis("mlp", "mlp_dim", "mlp_expansion", True, "hidden unit of the MLP"),
    Axis("v", "v_dim", "heads_expansion", True, "column of a head's values"),
    Axis("qk", "qk_dim", "attention_expansion", True, "column of a head's queries and keys"),
    Axis("embed", "embed_dim", "hidden_dimension_expansion", False, "residual dimension"),
    # As many as the stream has dimensions, and not the stream: heads of masked language models,
    # poolers, embedders of time are arrays of embed_dim by embed_dim.
    Axis("embed_units", "embed_dim", "hidden_dimension_expansion", False, "unit beside the stream"),
)

BY_NAME: dict[str, Axis] = {axis.name: axis for axis in TABLE}

# The names, in the order of the table.
AXES: tuple[str, ...] = tuple(BY_NAME)

# The fields of an architecture that say how long axes are, in its own order: of layers, of all.
LAYER_SIZE_FIELDS: tuple[str, ...] = tuple(
    name for name in LAYER_FIELDS if name in {axis.field for axis in TABLE if axis.per_layer}
)
SHARED_SIZE_FIELDS: tuple[str, ...] = tuple(
    field.name
    for field in dataclasses.fields(Architecture)
    if field.name in {axis.field for axis in TABLE if not axis.per_layer}
)

TRANSFORMATIONS: tuple[str, ...] = tuple(dict.fromkeys(axis.transformation for axis in TABLE))
