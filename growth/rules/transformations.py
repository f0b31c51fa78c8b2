"""The six transformations: functions from an architecture to a larger one.

A transformation is a frozen value. Called on an `Architecture`, it gives a `GrowthPlan`: the
architecture it came from, the one it leads to, and where each layer of the latter comes from.
`growth.expand` carries parameters along a plan.

Source: Gesmundo & Maile, arXiv 2308.06103, section 3 (definitions 3.1 to 3.6).
"""

import dataclasses

from growth.architecture import Architecture
from growth.architecture.validation import MOST_LAYERS, positive_int
from growth.rules.growth_plan import (
    GrowthError,
    GrowthPlan,
    check_position,
    scaled_epsilon,
    unmoved,
)
from growth.rules.widening import chosen_layers, one_for_each, widen, with_layers


@dataclasses.dataclass(frozen=True)
class Transformation:
    """A function from an architecture to a plan for a larger one.

    Examples:
      >>> import growth
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16
      ... )
      >>> step = growth.mlp_expansion(32)
      >>> isinstance(step, growth.Transformation), step == growth.mlp_expansion(32)
      (True, True)
      >>> step(small).target.mlp_dim
      32

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, section 3.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # a list would make the value unhashable
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))

    def __call__(self, architecture: Architecture) -> GrowthPlan:
        """The plan of this step from `architecture`.

        Raises:
          GrowthError: the step is impossible here; the message says why.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class mlp_expansion(Transformation):
    """Adds hidden units to the MLPs (definition 3.1).

    New columns of the input matrices are free, new rows of the output matrix are zero.

    Attributes:
      mlp_dim: the new width, or one for each of `layers`.
      layers: the layers that grow; None for all.

    Examples:
      >>> import growth
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16
      ... )
      >>> print(growth.mlp_expansion(32)(small))
      mlp_dim 16 → 32
      >>> print(growth.mlp_expansion(32, layers=(1,))(small))
      mlp_dim 16 → (16, 32)

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, definition 3.1.
    """

    mlp_dim: int | tuple[int, ...]
    layers: tuple[int, ...] | None = None

    def __call__(self, architecture: Architecture) -> GrowthPlan:
        return widen(architecture, {"mlp_dim": self.mlp_dim}, self.layers)


@dataclasses.dataclass(frozen=True)
class head_addition(Transformation):
    """Adds attention heads (definition 3.2).

    New heads' queries, keys and values are free, their rows of the output matrix are zero. Query
    head e reads key/value head ⌊e/r⌋, so a head cannot simply be appended to grouped heads: either
    whole groups are added, or every group gets the same number of further queries.

    Attributes:
      num_heads: the new number of query heads, or one for each of `layers`.
      num_kv_heads: the new number of key/value heads. None keeps the queries per group, so that
        whole groups are added; the old number adds queries to every group.
      layers: the layers that grow; None for all.

    Examples:
      >>> import growth
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=4, num_kv_heads=2,
      ...     mlp_dim=16,
      ... )
      >>> print(growth.head_addition(6)(small))
      num_heads 4 → 6; num_kv_heads 2 → 3
      >>> print(growth.head_addition(6, 2)(small))
      num_heads 4 → 6

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, definition 3.2.
      Groups of heads: Ainslie et al., arXiv 2305.13245, section 2.2.
    """

    num_heads: int | tuple[int, ...]
    num_kv_heads: int | tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None

    def __call__(self, architecture: Architecture) -> GrowthPlan:
        chosen = chosen_layers(architecture, self.layers)
        heads = one_for_each("num_heads", self.num_heads, chosen)
        groups = self.num_kv_heads
        if groups is None:
            groups = tuple(
                _whole_groups(architecture, index, number)
                for index, number in zip(chosen, heads, strict=True)
            )
        return widen(architecture, {"num_heads": heads, "num_kv_heads": groups}, self.layers)


@dataclasses.dataclass(frozen=True)
class heads_expansion(Transformation):
    """Widens the heads' values (definition 3.3).

    New columns of the value matrices are free, new rows of the output matrix are zero.

    Attributes:
      v_dim: the new width of a head's values, or one for each of `layers`.
      layers: the layers that grow; None for all.

    Examples:
      >>> import growth
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16
      ... )
      >>> print(growth.heads_expansion(6)(small))
      v_dim 4 → 6

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, definition 3.3.
    """

    v_dim: int | tuple[int, ...]
    layers: tuple[int, ...] | None = None

    def __call__(self, architecture: Architecture) -> GrowthPlan:
        return widen(architecture, {"v_dim": self.v_dim}, self.layers)


@dataclasses.dataclass(frozen=True)
class attention_expansion(Transformation):
    """Widens the heads' queries and keys (definition 3.4).

    New query columns are free, new key columns zero. Keys are multiplied by √(k̂/k), because scores
    are divided by √k̂ from then on. With rotary positions the base becomes θ^(k̂/k), which keeps the
    old frequencies, and new columns stand at the end of each half of the head, because column i is
    turned together with column i + k/2.

    Attributes:
      qk_dim: the new width of a head's queries and keys, or one for each of `layers`.
      layers: the layers that grow; None for all.

    Examples:
      >>> import growth
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16
      ... )
      >>> print(growth.attention_expansion(8)(small))
      qk_dim 4 → 8; rope_theta 10000.0 → 100000000.0

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, definition 3.4.
      Rotary positions: Su et al., arXiv 2104.09864, equation 15.
    """

    qk_dim: int | tuple[int, ...]
    layers: tuple[int, ...] | None = None

    def __call__(self, architecture: Architecture) -> GrowthPlan:
        return widen(architecture, {"qk_dim": self.qk_dim}, self.layers)


@dataclasses.dataclass(frozen=True)
class hidden_dimension_expansion(Transformation):
    """Widens the residual stream (definition 3.5).

    The stream holds zero in its new dimensions under RMSNorm, and the mean of its old dimensions
    under LayerNorm: then the mean that the norm subtracts is unchanged, so that both norms see a
    mean square that shrank by h/ĥ. Gains times √(h/ĥ) and an epsilon times h/ĥ make up for that
    exactly. What reads the stream behind a norm is free in the new dimensions.

    Attributes:
      embed_dim: the new width.

    Examples:
      >>> import growth
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16
      ... )
      >>> print(growth.hidden_dimension_expansion(16)(small))
      embed_dim 8 → 16; norm_eps 1e-05 → 5e-06

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, definition 3.5.
    """

    embed_dim: int

    def __call__(self, architecture: Architecture) -> GrowthPlan:
        # Architecture refuses a size that is no size; GrowthPlan one that shrinks.
        target = architecture.replace(embed_dim=self.embed_dim)
        target = target.replace(norm_eps=scaled_epsilon(architecture, target.embed_dim))
        return GrowthPlan(architecture, target, unmoved(architecture))


@dataclasses.dataclass(frozen=True)
class layer_addition(Transformation):
    """Inserts layers (definition 3.6).

    A new layer is like the layer below it (the first layer, at the bottom): it has its shape and,
    where layers are of different kinds, its kind. What its attention and its MLP write to the
    stream is zero, so it adds nothing; all else in it is free.

    Attributes:
      count: how many layers are inserted.
      position: the index that the first of them gets, from 0 (below all) to the number of layers
        (above all). None means above all.
      like: the old layer that the new ones are like, or one for each of them, where it is not the
        layer below: `layer_addition(3, like=(0, 1, 2))` adds a whole period of three kinds of
        layers.

    Examples:
      >>> import growth
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16
      ... )
      >>> print(growth.layer_addition(1)(small))
      num_layers 2 → 3; new layers at 2
      >>> print(growth.layer_addition(2, position=0)(small))
      num_layers 2 → 4; new layers at 0, 1
      >>> print(growth.layer_addition(2, like=(0, 1))(small))
      num_layers 2 → 4; new layers at 2, 3 like 0, 1

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, definition 3.6.
    """

    count: int
    position: int | None = None
    like: int | tuple[int, ...] | None = None

    def __call__(self, architecture: Architecture) -> GrowthPlan:
        number = architecture.num_layers
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise GrowthError(f"count is {self.count!r}, but at least 1 layer must be added")
        positive_int("num_layers", number + self.count, MOST_LAYERS)
        position = number if self.position is None else self.position
        check_position(position, number)
        origins: list[int | None] = list(unmoved(architecture))
        templates = list(unmoved(architecture))
        origins[position:position] = [None] * self.count
        templates[position:position] = self._like(architecture, max(position - 1, 0))
        target = with_layers(architecture, [architecture.layers[i] for i in templates])
        return GrowthPlan(architecture, target, tuple(origins), tuple(templates))

    def _like(self, architecture: Architecture, below: int) -> tuple[int, ...]:
        """The old layer that each new one is like."""
        like = below if self.like is None else self.like
        if isinstance(like, int) and not isinstance(like, bool):
            like = (like,) * self.count
        if not isinstance(like, tuple) or len(like) != self.count:
            raise GrowthError(
                f"like is {self.like!r}, but it must be the index of a layer, or one for each of "
                f"the {self.count} new layers"
            )
        for index in like:
            if isinstance(index, bool) or index not in range(architecture.num_layers):
                raise GrowthError(
                    f"like names layer {index!r}, but the layers are 0 to "
                    f"{architecture.num_layers - 1}"
                )
        return like


def _whole_groups(architecture: Architecture, index: int, num_heads: int) -> int:
    per_group = architecture.layers[index].queries_per_group
    if num_heads % per_group:
        raise GrowthError(
            f"num_heads cannot become {num_heads} in layer {index}: a group has {per_group} query "
            f"heads, and whole groups are added unless num_kv_heads is given"
        )
    return num_heads // per_group
