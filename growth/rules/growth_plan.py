"""`GrowthPlan`: a way from one architecture to a larger one that computes the same function.

A plan can only be built where growth is exact. Whatever is impossible is refused here, with the
reason, before any parameter is touched.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from growth.architecture import LAYER_FIELDS, Architecture, LayerShape
from growth.errors import InputError
from growth.rules import feasibility
from growth.rules.axes import LAYER_SIZE_FIELDS, SHARED_SIZE_FIELDS, TABLE

# What growth may change: sizes, and what must follow them so that the function stays.
_GROWING = (*LAYER_FIELDS, *SHARED_SIZE_FIELDS, "norm_eps")


class GrowthError(InputError):
    """A growth step is impossible, or would change what the network computes."""


@dataclasses.dataclass(frozen=True)
class GrowthPlan:
    """A way from one architecture to a larger one that computes the same function.

    Attributes:
      source: the architecture that grows.
      target: the architecture it becomes.
      layer_sources: for each layer of `target` the index of the layer of `source` that it
        continues, or None for a new layer.
      layer_templates: for each layer of `target` the index of the layer of `source` that it
        continues or, if it is new, is like: it has its shape and its kind, and copies are of it. If
        not given, a new layer is like the one below it (the first one, at the bottom).

    Raises:
      GrowthError: the step would shrink something, or would not preserve the function.

    Examples:
      >>> import growth
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16
      ... )
      >>> plan = growth.layer_addition(1, position=1)(small)
      >>> plan.layer_sources
      (0, None, 1)
      >>> plan.changes
      {'num_layers': (2, 3)}
      >>> print(plan.followed_by(growth.mlp_expansion(32)(plan.target)))
      mlp_dim 16 → 32; num_layers 2 → 3; new layers at 1

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, section 3.
    """

    source: Architecture
    target: Architecture
    layer_sources: tuple[int | None, ...]
    layer_templates: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        # A list has no hash.
        object.__setattr__(self, "layer_sources", tuple(self.layer_sources))
        templates = tuple(self.layer_templates) or nearest_sources(self.layer_sources)
        object.__setattr__(self, "layer_templates", templates)
        source, target = self.source, self.target
        for field in dataclasses.fields(Architecture):
            old, new = getattr(source, field.name), getattr(target, field.name)
            if field.name not in _GROWING and old != new:
                raise GrowthError(f"{field.name} is {old!r} and growth cannot change it to {new!r}")
        if target.embed_dim < source.embed_dim:
            raise GrowthError(
                f"embed_dim is {source.embed_dim} and cannot shrink to {target.embed_dim}"
            )
        kept = [index for index in self.layer_sources if index is not None]
        if kept != list(range(source.num_layers)) or len(self.layer_sources) != target.num_layers:
            raise GrowthError(
                f"layer_sources is {self.layer_sources}, but from {source.num_layers} to "
                f"{target.num_layers} layers every old layer must stand once, in its old order"
            )
        self._check_templates()
        self._check_embed()
        if target.num_layers > source.num_layers:
            _refuse("num_layers", source.num_layers, target.num_layers, feasibility.layers(source))
        for index, origin in enumerate(self.layer_sources):
            if origin is not None:
                _check_layer(index, source.layers[origin], target.layers[index], source)

    def _check_templates(self) -> None:
        pairs = list(zip(self.layer_sources, self.layer_templates, strict=False))
        old = range(self.source.num_layers)
        if len(self.layer_templates) != len(self.layer_sources) or any(
            template not in old or origin not in (None, template) for origin, template in pairs
        ):
            raise GrowthError(
                f"layer_templates is {self.layer_templates}, but it must name a layer of the "
                f"{len(old)} old ones for each of layer_sources, {self.layer_sources}, and the "
                f"same where that names one"
            )

    def _check_embed(self) -> None:
        source, target = self.source, self.target
        if not math.isclose(
            target.norm_eps, scaled_epsilon(source, target.embed_dim), rel_tol=1e-12
        ):
            raise GrowthError(
                f"norm_eps must become {scaled_epsilon(source, target.embed_dim)!r} to preserve "
                f"the function when embed_dim grows from {source.embed_dim} to "
                f"{target.embed_dim}, not {target.norm_eps!r}"
            )
        if target.embed_dim > source.embed_dim:
            _refuse("embed_dim", source.embed_dim, target.embed_dim, feasibility.embed(source))

    @property
    def changes(self) -> dict[str, tuple[Any, Any]]:
        """The fields that differ, as {name: (old, new)}."""
        pairs = {n: (getattr(self.source, n), getattr(self.target, n)) for n in _GROWING}
        return {name: (old, new) for name, (old, new) in pairs.items() if old != new}

    @property
    def grown_axes(self) -> tuple[str, ...]:
        """The axes along which something becomes longer, by their names in blueprints."""
        like = tuple(enumerate(self.layer_templates))
        return tuple(
            axis.name
            for axis in TABLE
            if any(
                axis.length(self.target, new) > axis.length(self.source, old) for new, old in like
            )
        )

    def followed_by(self, following: "GrowthPlan") -> "GrowthPlan":
        """This plan and one that starts where it ends, as one plan."""
        if following.source != self.target:
            raise GrowthError(
                f"a plan that starts at {following.source} cannot follow one that ends at "
                f"{self.target}"
            )
        origins = [None if i is None else self.layer_sources[i] for i in following.layer_sources]
        templates = [self.layer_templates[i] for i in following.layer_templates]
        return GrowthPlan(self.source, following.target, tuple(origins), tuple(templates))

    def __str__(self) -> str:
        text = [f"{name} {old} → {new}" for name, (old, new) in self.changes.items()]
        new_layers = [i for i, origin in enumerate(self.layer_sources) if origin is None]
        if new_layers:
            text.append(f"new layers at {', '.join(map(str, new_layers))}")
        if self.layer_templates != nearest_sources(self.layer_sources):
            text[-1] += f" like {', '.join(str(self.layer_templates[i]) for i in new_layers)}"
        return "; ".join(text) or "nothing changes"


def _refuse(name: str, old: int, new: int, reason: str | None) -> None:
    if reason:
        raise GrowthError(f"{name} cannot grow exactly from {old} to {new}: {reason}")


def _check_layer(index: int, old: LayerShape, new: LayerShape, source: Architecture) -> None:
    for name in LAYER_SIZE_FIELDS:
        if getattr(new, name) < getattr(old, name):
            raise GrowthError(
                f"{name} is {getattr(old, name)} in layer {index} and cannot shrink to "
                f"{getattr(new, name)}"
            )
    if new.queries_per_group < old.queries_per_group:
        raise GrowthError(
            f"layer {index} has {old.num_heads} heads in {old.num_kv_heads} groups and cannot have "
            f"{new.num_heads} in {new.num_kv_heads}: a query head would read another group's keys. "
            f"A group must keep its {old.queries_per_group} queries or get more"
        )
    if new.window != old.window:
        raise GrowthError(
            f"window is {old.window} in layer {index} and growth cannot change it to {new.window}"
        )
    if new.num_heads > old.num_heads:
        reason = feasibility.heads(source, old, new)
        _refuse(f"num_heads in layer {index}", old.num_heads, new.num_heads, reason)
    if new.qk_dim > old.qk_dim:
        _refuse(f"qk_dim in layer {index}", old.qk_dim, new.qk_dim, feasibility.qk(source))
    theta = scaled_theta(old, new.qk_dim) if source.turns_whole_heads else old.rope_theta
    if source.position == "rope" and not math.isclose(new.rope_theta, theta, rel_tol=1e-12):
        raise GrowthError(
            f"rope_theta must become {theta!r} in layer {index} to preserve the function when "
            f"qk_dim grows from {old.qk_dim} to {new.qk_dim}, not {new.rope_theta!r}"
        )


def scaled_epsilon(source: Architecture, embed_dim: int) -> float:
    """A norm's ε̂ = ε·h/ĥ: the mean square over ĥ dimensions shrinks by h/ĥ, and ε with it.

    Where ε is fixed, the stream is multiplied by √(ĥ/h) instead, and the mean square stays.
    """
    if source.fixed_norm_eps:
        return source.norm_eps
    return source.norm_eps * source.embed_dim / embed_dim


def scaled_theta(layer: LayerShape, qk_dim: int) -> float:
    """A base θ̂ = θ^(k̂/k), so that the first k/2 frequencies θ̂^(-2i/k̂) are the old ones."""
    if qk_dim == layer.qk_dim:
        return layer.rope_theta
    try:
        return layer.rope_theta ** (qk_dim / layer.qk_dim)
    except OverflowError:
        raise GrowthError(
            f"qk_dim cannot grow from {layer.qk_dim} to {qk_dim}: rope_theta would become "
            f"{layer.rope_theta} ** {qk_dim / layer.qk_dim}, which no float can hold"
        ) from None


def aligned(thetas: Sequence[float]) -> tuple[float, ...]:
    """The bases of all layers, those that differ by rounding alone made equal.

    Two layers that reached the same width in different steps would else never be equal again.
    """
    result: list[float] = []
    for theta in thetas:
        same = (other for other in result if math.isclose(other, theta, rel_tol=1e-12))
        result.append(next(same, theta))
    return tuple(result)


def plan(
    source: Architecture, target: Architecture, position: int | Sequence[int] | None = None
) -> GrowthPlan:
    """The plan between two given architectures.

    Args:
      source: the architecture that grows.
      target: the architecture to reach. Where its `norm_eps` or `rope_theta` is still that of
        `source`, the plan's target has the value that preserves the function.
      position: where the new layers go: one index for all of them, or an index for each, counted
        in the layers of `source` as for `layer_addition`. None spreads them evenly.

    Raises:
      GrowthError: there is no exact way; the message names the field.

    Examples:
      >>> import growth
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16
      ... )
      >>> print(growth.plan(small, small.replace(num_layers=4, mlp_dim=32)))
      mlp_dim 16 → 32; num_layers 2 → 4; new layers at 1, 3

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, definitions 3.1 to 3.6.
    """
    old, new = source.num_layers, target.num_layers
    if new < old:
        raise GrowthError(f"num_layers is {old} and cannot shrink to {new}")
    if position is None:
        origins = spread(old, new)
    else:
        places = [position] * (new - old) if isinstance(position, int) else sorted(position)
        if len(places) != new - old:
            raise GrowthError(
                f"position names {len(places)} places for the {new - old} new layers from "
                f"{old} to {new}: give one index, or one for each new layer"
            )
        origins = list(range(old))
        for place in reversed(places):
            check_position(place, old)
            origins.insert(place, None)

    return plan_between(source, target, tuple(origins))


def plan_between(
    source: Architecture,
    target: Architecture,
    layer_sources: tuple[int | None, ...],
    layer_templates: tuple[int, ...] = (),
) -> GrowthPlan:
    """The plan between two architectures, with the layers that each new one continues.

    Args:
      source: the architecture that grows.
      target: the architecture to reach; `norm_eps` and `rope_theta` follow as for `plan`.
      layer_sources, layer_templates: as in `GrowthPlan`.

    Raises:
      GrowthError: there is no exact way.
    """
    if target.norm_eps == source.norm_eps:
        target = target.replace(norm_eps=scaled_epsilon(source, target.embed_dim))
    if source.turns_whole_heads:
        thetas = []
        templates = layer_templates or nearest_sources(layer_sources)
        for layer, template in zip(target.layers, templates, strict=True):
            model = source.layers[template]
            unscaled = layer.rope_theta == model.rope_theta
            thetas.append(scaled_theta(model, layer.qk_dim) if unscaled else layer.rope_theta)
        target = target.replace(rope_theta=aligned(thetas))
    return GrowthPlan(source, target, layer_sources, layer_templates)


def nearest_sources(layer_sources: Sequence[int | None]) -> tuple[int, ...]:
    """For each target layer the source layer that it continues; for a new one the one below it."""
    below, result = 0, []
    for origin in layer_sources:
        below = below if origin is None else origin
        result.append(below)
    return tuple(result)


def spread(old: int, new: int) -> list[int | None]:
    """Where each of `new` layers comes from when new layers are spread evenly among `old`."""
    origins: list[int | None] = [None] * new
    for index in range(old):
        origins[index * new // old] = index
    return origins


def unmoved(architecture: Architecture) -> tuple[int, ...]:
    return tuple(range(architecture.num_layers))


def check_position(position: int, num_layers: int) -> int:
    """The position, where layers can be inserted there."""
    if isinstance(position, bool) or not isinstance(position, int):
        raise GrowthError(f"position is {position!r}, not a whole number")
    if not 0 <= position <= num_layers:
        raise GrowthError(
            f"position is {position}, but layers can be inserted at 0 to {num_layers} of "
            f"{num_layers} layers"
        )
    return position
