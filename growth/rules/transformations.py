"""The six transformations: functions from an architecture to a larger one.

A transformation is a frozen value. Called on an `Architecture`, it gives a `GrowthPlan`: the
architecture it came from, the one it leads to, and where each layer of the latter comes from.
`growth.expand` carries parameters along a plan.

Source: Gesmundo & Maile, arXiv 2308.06103, section 3 (definitions 3.1 to 3.6).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from growth.architecture import LAYER_FIELDS, Architecture, LayerShape
from growth.rules.growth_plan import (
    GrowthError,
    GrowthPlan,
    aligned,
    check_position,
    scaled_epsilon,
    scaled_theta,
    spread,
    unmoved,
)


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
        return _widen(architecture, {"mlp_dim": self.mlp_dim}, self.layers)


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
        chosen = _chosen(architecture, self.layers)
        heads = _one_for_each("num_heads", self.num_heads, chosen)
        groups = self.num_kv_heads
        if groups is None:
            groups = tuple(
                _whole_groups(architecture, index, number)
                for index, number in zip(chosen, heads, strict=True)
            )
        return _widen(architecture, {"num_heads": heads, "num_kv_heads": groups}, self.layers)


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
        return _widen(architecture, {"v_dim": self.v_dim}, self.layers)


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
        return _widen(architecture, {"qk_dim": self.qk_dim}, self.layers)


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

    A new layer has the shape of the layer below it (of the first layer, at the bottom). The output
    matrices of its attention and its MLP are zero, so it adds nothing to the stream; all else in it
    is free.

    Attributes:
      count: how many layers are inserted.
      position: the index that the first of them gets, from 0 (below all) to the number of layers
        (above all). None means above all.

    Examples:
      >>> import growth
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16
      ... )
      >>> print(growth.layer_addition(1)(small))
      num_layers 2 → 3; new layers at 2
      >>> print(growth.layer_addition(2, position=0)(small))
      num_layers 2 → 4; new layers at 0, 1

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, definition 3.6.
    """

    count: int
    position: int | None = None

    def __call__(self, architecture: Architecture) -> GrowthPlan:
        number = architecture.num_layers
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise GrowthError(f"count is {self.count!r}, but at least 1 layer must be added")
        position = number if self.position is None else self.position
        check_position(position, number)
        origins: list[int | None] = list(unmoved(architecture))
        origins[position:position] = [None] * self.count
        shapes = list(architecture.layers)
        shapes[position:position] = [shapes[max(position - 1, 0)]] * self.count
        return GrowthPlan(architecture, _with_layers(architecture, shapes), tuple(origins))


@dataclasses.dataclass(frozen=True)
class _Composition(Transformation):
    steps: tuple[Transformation, ...]

    def __call__(self, architecture: Architecture) -> GrowthPlan:
        whole = GrowthPlan(architecture, architecture, unmoved(architecture))
        for step in self.steps:
            whole = whole.followed_by(step(whole.target))
        return whole


def compose(*steps: Transformation) -> Transformation:
    """Any number of transformations, one after the other, as one transformation.

    Each acts on the architecture that the steps before it lead to: indices of layers count layers
    that an earlier step has inserted.

    Examples:
      >>> import growth
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16
      ... )
      >>> step = growth.compose(growth.layer_addition(1), growth.mlp_expansion(32, layers=(2,)))
      >>> print(step(small))
      num_layers 2 → 3; mlp_dim 16 → (16, 16, 32); new layers at 2

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, section 3.
      There the transformations are composed.
    """
    return _Composition(tuple(steps))


@dataclasses.dataclass(frozen=True)
class grow_to(Transformation):
    """Leads to given sizes, by all the transformations that takes.

    Attributes:
      embed_dim, num_heads, num_kv_heads, qk_dim, v_dim, mlp_dim: the new sizes, for all layers or
        one for each layer of the result; None leaves a size as it is. `num_kv_heads` follows
        `num_heads` as for `head_addition`.
      num_layers: the new number of layers.
      position: where the new layers go: one index for all of them, or an index for each, counted in
        the old layers, as for `layer_addition`. None spreads them evenly.

    Examples:
      >>> import growth
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16
      ... )
      >>> print(growth.grow_to(embed_dim=16, num_layers=3)(small))
      embed_dim 8 → 16; num_layers 2 → 3; norm_eps 1e-05 → 5e-06; new layers at 2
      >>> growth.grow_to(num_heads=3, mlp_dim=8)(small)
      Traceback (most recent call last):
          ...
      growth...GrowthError: mlp_dim is 16 in layer 0 and cannot shrink to 8

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, definitions 3.1 to 3.6.
    """

    embed_dim: int | None = None
    num_layers: int | None = None
    num_heads: int | tuple[int, ...] | None = None
    num_kv_heads: int | tuple[int, ...] | None = None
    qk_dim: int | tuple[int, ...] | None = None
    v_dim: int | tuple[int, ...] | None = None
    mlp_dim: int | tuple[int, ...] | None = None
    position: int | tuple[int, ...] | None = None

    def __call__(self, architecture: Architecture) -> GrowthPlan:
        steps: list[Transformation] = []
        if self.num_layers is not None:
            steps += self._layer_additions(architecture.num_layers, self.num_layers)
        elif self.position is not None:
            raise GrowthError(f"position is {self.position}, but num_layers is not given")
        if self.num_heads is not None:
            steps.append(head_addition(self.num_heads, self.num_kv_heads))
        elif self.num_kv_heads is not None:
            raise GrowthError(f"num_kv_heads is {self.num_kv_heads}, but num_heads is not given")
        if self.qk_dim is not None:
            steps.append(attention_expansion(self.qk_dim))
        if self.v_dim is not None:
            steps.append(heads_expansion(self.v_dim))
        if self.mlp_dim is not None:
            steps.append(mlp_expansion(self.mlp_dim))
        if self.embed_dim is not None:
            steps.append(hidden_dimension_expansion(self.embed_dim))
        return compose(*steps)(architecture)

    def _layer_additions(self, old: int, new: int) -> list[Transformation]:
        if isinstance(new, bool) or not isinstance(new, int) or new < old:
            raise GrowthError(f"num_layers is {old} and cannot become {new!r}: it cannot shrink")
        if new == old:
            return []
        if isinstance(self.position, int):
            return [layer_addition(new - old, self.position)]
        if self.position is not None:
            if len(self.position) != new - old:
                raise GrowthError(
                    f"position names {len(self.position)} places for the {new - old} new layers "
                    f"from {old} to {new}: give one index, or one for each new layer"
                )
            places = [check_position(place, old) for place in sorted(self.position)]
            return [layer_addition(1, place + below) for below, place in enumerate(places)]
        origins = spread(old, new)
        return [layer_addition(1, at) for at, origin in enumerate(origins) if origin is None]


def _chosen(architecture: Architecture, layers: Sequence[int] | None) -> tuple[int, ...]:
    if layers is None:
        return unmoved(architecture)
    if not isinstance(layers, Sequence) or len(set(layers)) != len(layers):
        raise GrowthError(f"layers is {layers!r}, but it must be a sequence of different layers")
    for index in layers:
        if index not in range(architecture.num_layers):
            raise GrowthError(
                f"layers names layer {index}, but the layers are 0 to {architecture.num_layers - 1}"
            )
    return tuple(layers)


def _one_for_each(name: str, size: Any, chosen: Sequence[int]) -> tuple[Any, ...]:
    several = isinstance(size, Sequence) and not isinstance(size, str)
    values = tuple(size) if several else (size,) * len(chosen)
    if len(values) != len(chosen):
        raise GrowthError(f"{name} has {len(values)} sizes for {len(chosen)} layers")
    for value in values:
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise GrowthError(f"{name} is {value!r}, but it must be a whole number")
    return values


def _whole_groups(architecture: Architecture, index: int, num_heads: int) -> int:
    per_group = architecture.layers[index].queries_per_group
    if num_heads % per_group:
        raise GrowthError(
            f"num_heads cannot become {num_heads} in layer {index}: a group has {per_group} query "
            f"heads, and whole groups are added unless num_kv_heads is given"
        )
    return num_heads // per_group


def _widen(
    architecture: Architecture, sizes: dict[str, Any], layers: Sequence[int] | None
) -> GrowthPlan:
    """The plan that gives the chosen layers new sizes, each one number or one per chosen layer."""
    chosen = _chosen(architecture, layers)
    shapes = list(architecture.layers)
    for name, size in sizes.items():
        for index, value in zip(chosen, _one_for_each(name, size, chosen), strict=True):
            shapes[index] = dataclasses.replace(shapes[index], **{name: value})
    if "qk_dim" in sizes and architecture.turns_whole_heads:
        pairs = list(zip(architecture.layers, shapes, strict=True))
        thetas = aligned([scaled_theta(old, new.qk_dim) for old, new in pairs])
        shapes = [
            dataclasses.replace(new, rope_theta=theta)
            for new, theta in zip(shapes, thetas, strict=True)
        ]
    return GrowthPlan(architecture, _with_layers(architecture, shapes), unmoved(architecture))


def _with_layers(architecture: Architecture, shapes: Sequence[LayerShape]) -> Architecture:
    columns = {name: tuple(getattr(s, name) for s in shapes) for name in LAYER_FIELDS}
    return architecture.replace(num_layers=len(shapes), **columns)
