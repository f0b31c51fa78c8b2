"""Several transformations as one: in a given order, or all that it takes to reach given sizes."""

import dataclasses
from collections.abc import Sequence

from growth.architecture import Architecture
from growth.architecture.validation import MOST_LAYERS, positive_int
from growth.rules.growth_plan import GrowthError, GrowthPlan, check_position, spread, unmoved
from growth.rules.transformations import (
    Transformation,
    attention_expansion,
    head_addition,
    heads_expansion,
    hidden_dimension_expansion,
    layer_addition,
    mlp_expansion,
)


@dataclasses.dataclass(frozen=True)
class _Composition(Transformation):
    steps: tuple[Transformation, ...]

    def __call__(self, architecture: Architecture) -> GrowthPlan:
        joined = GrowthPlan(architecture, architecture, unmoved(architecture))
        for step in self.steps:
            joined = joined.followed_by(step(joined.target))
        return joined


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
      mlp_dim 16 → (16, 16, 32); num_layers 2 → 3; new layers at 2

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
        positive_int("num_layers", new, MOST_LAYERS)
        if new < old:
            raise GrowthError(f"num_layers is {old} and cannot become {new!r}: it cannot shrink")
        if new == old:
            return []
        if isinstance(self.position, int):
            return [layer_addition(new - old, self.position)]
        if self.position is not None:
            if not isinstance(self.position, Sequence) or isinstance(self.position, str):
                raise GrowthError(f"position is {self.position!r}, but it must be whole numbers")
            if len(self.position) != new - old:
                raise GrowthError(
                    f"position names {len(self.position)} places for the {new - old} new layers "
                    f"from {old} to {new}: give one index, or one for each new layer"
                )
            places = [check_position(place, old) for place in sorted(self.position)]
            return [layer_addition(1, place + below) for below, place in enumerate(places)]
        origins = spread(old, new)
        return [layer_addition(1, at) for at, origin in enumerate(origins) if origin is None]
