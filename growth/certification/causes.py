"""Why a growth step may have changed a function: which size, and which field that a model ignores.

An architecture says what a model computes, and a model may compute something else: its epsilon may
be a literal, its scale of attention a constant. Each such assumption is tried: growth is done as if
it held, and the model itself says whether its function would then have stayed.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from growth.architecture import LAYER_FIELDS, Architecture
from growth.blueprints.blueprint import Blueprint
from growth.errors import InputError
from growth.expansion.accounts import ArrayAccount, source_account
from growth.expansion.jax_backend import build
from growth.expansion.parameters import expand
from growth.rules.growth_plan import GrowthPlan, plan_between, unmoved
from growth.types import Params

# An architecture and its parameters to logits.
Logits = Callable[[Architecture, Params], jax.Array]

# What must follow as sizes grow, and another value of it, which any model that reads it would show.
_FOLLOWING: Mapping[str, Callable[[Architecture], Any]] = {
    "norm_eps": lambda arch: arch.norm_eps + 1.0,
    "rope_theta": lambda arch: tuple(2 * layer.rope_theta for layer in arch.layers),
}

_SIZES = (
    ("num_layers",),
    ("num_heads", "num_kv_heads"),
    ("mlp_dim",),
    ("v_dim",),
    ("qk_dim",),
    ("embed_dim",),
)


def likely_causes(
    logits: Logits, params: Params, plan: GrowthPlan, blueprint: Blueprint, limit: float
) -> tuple[str, ...]:
    """What explains that a growth step changes the function, in words; most telling first.

    Args:
      logits: the model.
      params: parameters of `plan.source`, float64.
      plan: the growth step.
      blueprint: what the parameters are.
      limit: how far logits may move, relative to the largest.
    """
    before = np.asarray(logits(plan.source, params), np.float64)

    def error(target: Architecture, grown: Params) -> float:
        after = np.asarray(logits(target, grown), np.float64)
        return float(np.abs(after - before).max() / np.abs(before).max())

    def grown(step: GrowthPlan) -> Params:
        fresh = random_parameters(params, step, blueprint)
        return expand(params, step, blueprint=blueprint, fresh=fresh)

    found = []
    for fields, words in _assumptions(plan.source):
        try:
            assumed = _replanned(plan, fields)
            small = error(plan.target, grown(assumed))
        except InputError:
            continue  # no such architecture, no exact way, or a blueprint that contradicts it
        if small <= limit:
            said = ", ".join(f"{name}={value!r}" for name, value in fields.items())
            found.append(f"with {said} the function would stay, to {small:.0e}: {words}")
    larger = grown(plan)
    found += [
        f"{name} of the architecture has no effect on the model's logits, and it must change from "
        f"{getattr(plan.source, name)} to {getattr(plan.target, name)} as the model grows"
        for name in _FOLLOWING
        if getattr(plan.source, name) != getattr(plan.target, name)
        and _is_ignored(logits, plan.target, larger, name)
    ]
    return tuple(found + list(_by_size(plan, grown, error, limit)))


def random_parameters(params: Params, plan: GrowthPlan, blueprint: Blueprint) -> Params:
    """A tree of `plan.target`'s shapes with random values, where no initializer is at hand.

    Args:
      params: parameters of `plan.source`.
      plan: the growth step.
      blueprint: what the parameters are.
    """
    random = np.random.default_rng(0)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(params)}

    def values(array: ArrayAccount) -> jax.Array:
        drawn = 0.3 * random.standard_normal(array.layout.shape)
        return jnp.asarray(drawn, jnp.result_type(*dtypes))

    return build(source_account(params, plan, blueprint), params, values)


def _assumptions(source: Architecture) -> Iterator[tuple[dict[str, Any], str]]:
    """Fields that a model may have otherwise than its architecture says, with words for people."""
    if not source.fixed_norm_eps:
        yield dict(fixed_norm_eps=True), "the model's epsilon does not follow its architecture"
    else:
        yield dict(fixed_norm_eps=False), "the model's epsilon follows its architecture"
    if source.query_scale is None and isinstance(source.qk_dim, int):
        yield (
            dict(query_scale=source.qk_dim**-0.5),
            "the model multiplies its queries by a constant, not by 1/√qk_dim",
        )
    elif source.query_scale is not None:
        yield dict(query_scale=None), "the model multiplies its queries by 1/√qk_dim"
    scaled = not source.scaled_embedding
    yield (
        dict(scaled_embedding=scaled),
        f"the model {'multiplies' if scaled else 'does not multiply'} its embeddings by √embed_dim",
    )
    offset = not source.unit_offset
    yield (
        dict(unit_offset=offset),
        f"the model's norms use {'1 + w' if offset else 'w'} where w is their gain",
    )
    other = "rmsnorm" if source.norm == "layernorm" else "layernorm"
    yield dict(norm=other), f"the model's norms are {other}s"
    yield (
        dict(final_norm=not source.final_norm),
        f"the model's output layer reads {'the stream itself' if source.final_norm else 'a norm'}",
    )
    if source.position == "rope":
        yield dict(position="none"), "the model does not turn queries and keys by their positions"
        if source.rotary_dim is None and isinstance(source.qk_dim, int):
            yield (
                dict(rotary_dim=source.qk_dim),
                "the model turns as many columns of a head as before, however wide it is",
            )
    else:
        yield dict(position="rope"), "the model turns queries and keys by their positions"


def _replanned(plan: GrowthPlan, fields: Mapping[str, Any]) -> GrowthPlan:
    """The same growth of sizes from an architecture with other fields."""
    source = plan.source.replace(**fields)
    target = _unfollowed(plan).replace(**fields)
    return plan_between(source, target, plan.layer_sources, plan.layer_templates)


def _unfollowed(plan: GrowthPlan) -> Architecture:
    """The target of a plan, with what follows the sizes as it was before."""
    thetas = [plan.source.layers[i].rope_theta for i in plan.layer_templates]
    return plan.target.replace(norm_eps=plan.source.norm_eps, rope_theta=tuple(thetas))


def _is_ignored(logits: Logits, target: Architecture, params: Params, field: str) -> bool:
    other = target.replace(**{field: _FOLLOWING[field](target)})
    return bool(jnp.array_equal(logits(target, params), logits(other, params)))


def _by_size(
    plan: GrowthPlan,
    grown: Callable[[GrowthPlan], Params],
    error: Callable[[Architecture, Params], float],
    limit: float,
) -> Iterator[str]:
    """Which of the sizes changes the function, each grown alone."""
    moved: list[tuple[str, float]] = []
    kept: list[tuple[str, float]] = []
    for fields in _SIZES:
        if getattr(plan.source, fields[0]) == getattr(plan.target, fields[0]):
            continue
        try:
            alone = _alone(plan, fields)
            by = error(alone.target, grown(alone))
        except InputError:
            continue
        (kept if by <= limit else moved).append((fields[0], by))
    if moved:
        told = ", ".join(f"{name} alone moves them by {by:.0e}" for name, by in moved)
        rest = "; what keeps them: " + ", ".join(name for name, _ in kept) if kept else ""
        yield f"of the sizes, {told}{rest}"


def _alone(plan: GrowthPlan, fields: tuple[str, ...]) -> GrowthPlan:
    """The part of a plan that grows one size."""
    source, target = plan.source, plan.target
    if fields == ("embed_dim",):
        grown = source.replace(embed_dim=target.embed_dim)
        return plan_between(source, grown, unmoved(source))
    if fields == ("num_layers",):
        like = [source.layers[i] for i in plan.layer_templates]
        shapes = {name: tuple(getattr(layer, name) for layer in like) for name in LAYER_FIELDS}
        grown = source.replace(num_layers=target.num_layers, **shapes)
        return plan_between(source, grown, plan.layer_sources, plan.layer_templates)
    kept = [layer for layer, origin in enumerate(plan.layer_sources) if origin is not None]
    sizes = {name: tuple(getattr(target.layers[i], name) for i in kept) for name in fields}
    return plan_between(source, source.replace(**sizes), unmoved(source))
