"""Can every new entry learn? Gradients of the new entries of a grown network, and equal units.

A new entry on the free side of a contraction gets its gradient through the zero side, so that it
has none before the first step and one after it: two steps decide.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from growth.blueprints import pytrees
from growth.blueprints.blueprint import Blueprint
from growth.blueprints.parameters import Parameter
from growth.expansion import role_views
from growth.expansion.jax_backend import old_entries
from growth.expansion.segments import old_index
from growth.rules.growth_plan import GrowthPlan
from growth.rules.roles import AXES

# A gradient is zero where it is this small beside the largest of its array: rounding.
ROUNDING = 1e-13


@dataclasses.dataclass(frozen=True)
class GradientReport:
    """What the first steps after growth showed.

    Attributes:
      new: the number of new entries of each parameter, by path.
      dead: of these, how many never had a gradient, where there are any.
      excused: likewise, but for a reason that growth has nothing to do with: a row of a token or
        position that the batch lacks, a unit that ReLU holds inactive, a bias of keys that are not
        turned (softmax does not see it).
      locked: pairs of units that are equal and get equal gradients, at least one of them new, as
        "layer, axis: unit and unit". They will stay equal for ever.
    """

    new: Mapping[str, int]
    dead: Mapping[str, int]
    excused: Mapping[str, int]
    locked: tuple[str, ...]


def new_entries(source: Any, plan: GrowthPlan, blueprint: Blueprint) -> Any:
    """Which entries of the grown parameters are new: a tree of boolean arrays.

    Args:
      source: parameters of `plan.source`, or their shapes.
      plan: the growth step.
      blueprint: what the parameters are.
    """
    old = old_entries(source, plan, blueprint)
    return jax.tree.map(lambda mark: ~np.asarray(mark), old)


def observe(
    gradient: Callable[[Any], Any],
    grown: Any,
    plan: GrowthPlan,
    blueprint: Blueprint,
    is_new: Any,
    tx: optax.GradientTransformation,
) -> GradientReport:
    """Takes two optimizer steps from grown parameters and looks at the gradients of new entries.

    Args:
      gradient: parameters to the gradient of a loss.
      grown: parameters of `plan.target`, float64.
      plan: the growth step.
      blueprint: what the parameters are.
      is_new: from `new_entries`.
      tx: the optimizer.
    """
    state = tx.init(grown)
    here, gradients = grown, []
    for _ in range(3):
        gradients.append(gradient(here))
        updates, state = tx.update(gradients[-1], state, here)
        here = optax.apply_updates(here, updates)
    located = blueprint.parameters(grown, plan.target)
    new: dict[str, int] = {}
    dead: dict[str, int] = {}
    excused: dict[str, int] = {}
    columns = (pytrees.leaves(is_new), *(jax.tree.leaves(step) for step in gradients))
    for leaf, *steps in zip(*columns, strict=True):
        fresh = leaf.value
        sizes = [np.abs(np.asarray(step)) for step in steps]
        alive = np.any([size > ROUNDING * size.max() for size in sizes], axis=0)
        still = fresh & ~alive
        pardoned = still & _excuses(located[leaf.path], alive, fresh, plan)
        new |= {leaf.path: int(fresh.sum())} if fresh.any() else {}
        dead |= {leaf.path: int(n)} if (n := (still & ~pardoned).sum()) else {}
        excused |= {leaf.path: int(n)} if (n := pardoned.sum()) else {}
    return GradientReport(new, dead, excused, tuple(_locked(grown, gradients[0], plan, located)))


def _excuses(parameter: Parameter, alive: np.ndarray, new: np.ndarray, plan: GrowthPlan) -> Any:
    """Which entries may be without gradient."""
    arch, roles, dims = plan.target, parameter.rule.roles, parameter.rule.dims
    if roles == ("key",) and "embed" not in parameter.rule.axes:
        return np.full(alive.shape, not arch.turns_whole_heads)
    if {"embedding", "position"} & {*roles}:
        over = tuple(i for i, names in enumerate(dims) if "embed" in names)
        return ~(alive & ~new).any(axis=over, keepdims=True)
    if arch.activation == "relu" and "mlp" in parameter.rule.axes:
        over = tuple(i for i, names in enumerate(dims) if not {"mlp", "layers"} & {*names})
        return ~alive.any(axis=over, keepdims=True)
    return np.zeros(alive.shape, bool)


def _locked(
    grown: Any, gradient: Any, plan: GrowthPlan, located: Mapping[str, Parameter]
) -> Iterator[str]:
    """Pairs of units that have the same values and gradients in all that belongs to them."""
    values, slopes = (_units(tree, plan, located) for tree in (grown, gradient))
    for (layer, axis), parts in values.items():
        table = np.concatenate(parts, axis=1)
        slope = np.concatenate(slopes[layer, axis], axis=1)
        _, kind = np.unique(table, axis=0, return_inverse=True)
        for i, j in _equal_pairs(np.ravel(kind)):
            scale = np.abs(slope).max()
            unequal = np.abs(slope[i] - slope[j]).max() > ROUNDING * scale
            if not unequal and not _is_old(layer, axis, j, plan):
                yield f"layer {layer}, {axis}: {i} and {j}"


def _equal_pairs(kind: np.ndarray) -> Iterator[tuple[int, int]]:
    """Neighbours among the units of one kind."""
    for value in np.flatnonzero(np.bincount(kind) > 1):
        members = np.flatnonzero(kind == value)
        yield from zip(members.tolist(), members[1:].tolist(), strict=False)


def _is_old(layer: int | None, axis: str, unit: int, plan: GrowthPlan) -> bool:
    if axis == "embed":
        return unit < plan.source.embed_dim
    origin = plan.layer_sources[layer or 0]
    if origin is None:
        return False
    old, new = plan.source.layers[origin], plan.target.layers[layer or 0]
    name = {"kv_heads": "num_kv_heads", "group": "queries_per_group"}.get(axis, f"{axis}_dim")
    whole, halves = getattr(old, name), axis == "qk" and plan.source.turns_whole_heads
    if halves:
        return unit < whole // 2
    return old_index(axis, unit, whole, getattr(new, name), rotary=False) is not None


def _units(
    tree: Any, plan: GrowthPlan, located: Mapping[str, Parameter]
) -> dict[tuple[int | None, str], list[np.ndarray]]:
    """Per layer and axis, what belongs to each unit: arrays of shape [units, entries]."""
    result: dict[tuple[int | None, str], list[np.ndarray]] = {}
    for leaf in pytrees.leaves(tree):
        parameter = located[leaf.path]
        array = jnp.asarray(leaf.value)
        fixed = role_views.fixed_sizes(parameter, array.shape, plan.target)
        named = role_views.sections(parameter, plan.target, fixed)
        for section, part in zip(
            named, role_views.split(array, parameter, plan.target), strict=True
        ):
            for axis in {*section.axes} & {*AXES} - {"layers"}:
                rows = np.moveaxis(np.asarray(part), section.axes.index(axis), 0)
                names = [name for name in section.axes if name != axis]
                if axis == "embed":
                    result.setdefault((None, axis), []).append(rows.reshape(len(rows), -1))
                elif "layers" in names:
                    for at, one in enumerate(np.moveaxis(rows, 1 + names.index("layers"), 0)):
                        home = (parameter.layers.start + at, axis)
                        result.setdefault(home, []).append(one.reshape(len(one), -1))
                elif parameter.layers:
                    home = (parameter.layers.start, axis)
                    result.setdefault(home, []).append(rows.reshape(len(rows), -1))
    return result
