"""The pass over the arrays: each array of the larger model, put together from the smaller one's.

What a new entry is stands in `growth.rules.roles`, which entry an array holds is said by a
blueprint, and the two meet here. Everything is known before the first array is read, so the pass is
a pure function that can be compiled, with a plan that is static.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from growth.architecture import Architecture
from growth.blueprints import pytrees
from growth.blueprints.blueprint import Blueprint
from growth.blueprints.notation import BlueprintError
from growth.blueprints.parameters import Parameter, misfits, siblings, size
from growth.expansion import role_views
from growth.expansion.init_values import FreeValues, zeros
from growth.expansion.role_views import Section
from growth.expansion.segments import Piece, pieces
from growth.rules.growth_plan import GrowthPlan
from growth.rules.roles import FREE, MEAN, ZERO, factor, fill, offset


def grow(
    tree: Any,
    plan: GrowthPlan,
    blueprint: Blueprint,
    free: FreeValues,
    degree: int | None = None,
    like: Any = None,
) -> Any:
    """Carries a tree shaped like the parameters to the larger architecture.

    Args:
      tree: arrays of `plan.source`'s shapes. Leaves that no rule matches must be empty nodes.
      plan: the growth step.
      blueprint: what the arrays are.
      free: the free values.
      degree: None for parameters, whose fixed entries get their fixed values. Other trees, of
        moments of gradients, are multiplied by c ** degree where parameters are multiplied by c,
        and all their new entries come from `free`.
      like: a tree of the target to take the containers from, where it holds the same leaves. The
        containers of `tree` may know its sizes.
    """
    located = blueprint.parameters(tree, plan.source)
    leaves = pytrees.leaves(tree)
    arrays = {located[leaf.path].name: leaf.value for leaf in leaves if leaf.path in located}
    by_path = {leaf.path: leaf for leaf in leaves}
    items, done = [], set()
    for leaf in leaves:
        if leaf.path not in located:
            items.append((leaf.keys, leaf, leaf.value))
            continue
        first = located[leaf.path]
        if first.kind in done:
            continue
        done.add(first.kind)
        _check_group(first, plan)
        for target in siblings(first, plan.target):
            for problem in misfits(target, plan.target):
                raise BlueprintError(problem)
            model = by_path.get(target.path, leaf)
            keys = pytrees.with_names(model.keys, target.path)
            items.append((keys, model, _grow_array(target, arrays, plan, free, degree)))
    grown = pytrees.build(items, tree)
    return grown if like is None else _with_containers(grown, like)


def _with_containers(tree: Any, like: Any) -> Any:
    """The same leaves in the containers of another tree, where that has a place for each."""
    values = {leaf.path: leaf.value for leaf in pytrees.leaves(tree)}
    places = [leaf.path for leaf in pytrees.leaves(like) if not pytrees.is_empty(leaf.value)]
    held = {path for path, value in values.items() if not pytrees.is_empty(value)}
    if not held <= set(places) <= set(values):
        return tree
    return jax.tree.unflatten(jax.tree.structure(like), [values[path] for path in places])


def _grow_array(
    target: Parameter,
    arrays: Mapping[str, jax.Array],
    plan: GrowthPlan,
    free: FreeValues,
    degree: int | None,
) -> jax.Array:
    """One array of the target: each of its sections, put together from pieces."""
    parts = pieces(target, plan)
    model = parts[0].source
    empty = {piece.source.name: pytrees.is_empty(arrays[piece.source.name]) for piece in parts}
    if all(empty.values()):
        return arrays[model.name]
    if any(empty.values()):
        raise BlueprintError(
            f"{target.path}: continues {', '.join(empty)} in one array, but some of them are empty"
        )
    dtype = arrays[model.name].dtype
    fixed = role_views.fixed_sizes(model, arrays[model.name].shape, plan.source)
    sections = []
    for number, section in enumerate(role_views.sections(target, plan.target, fixed)):
        blocks = [
            _grow_piece(part, section.with_layers(part.length), number, arrays, plan, degree)
            for part in parts
        ]
        sections.append(_assemble(parts, blocks, section, number, free, dtype))
    return role_views.join(sections, target, plan.target, fixed)


def _assemble(
    parts: Sequence[Piece],
    blocks: Sequence[jax.Array | None],
    section: Section,
    number: int,
    free: FreeValues,
    dtype: Any,
) -> jax.Array:
    """One section of a target array from the blocks of its pieces; the rest of it is free."""
    whole = [
        block.astype(dtype)
        for part, block in zip(parts, blocks, strict=True)
        if block is not None and block.shape == section.with_layers(part.length).shape
    ]
    if len(whole) == len(parts):
        return whole[0] if len(whole) == 1 else jnp.concatenate(whole, section.axes.index("layers"))
    # Blocks are written over free values, in place: each cut and joint would cost a pass.
    result = free(parts, section, number).astype(dtype)
    for part, block in zip(parts, blocks, strict=True):
        if block is not None:
            start = [part.start if axis == "layers" else 0 for axis in section.axes]
            result = jax.lax.dynamic_update_slice(result, block.astype(dtype), start)
    return result


def _grow_piece(
    piece: Piece,
    section: Section,
    number: int,
    arrays: Mapping[str, jax.Array],
    plan: GrowthPlan,
    degree: int | None,
) -> jax.Array | None:
    """One section of a piece without its free entries; None where all are free.

    So it is smaller than the section along axes that grow freely. Old entries are multiplied, new
    ones filled as their axis demands. Where an entry is new along several axes, any zero among
    fixed values makes it zero, except that a free axis has the last word: the entries that it adds
    are all free.
    """

    def fill_of(axis: str) -> str:
        return fill(section.role, axis, plan.source) if degree is None else FREE

    dtype = arrays[piece.source.name].dtype
    fills = {fill_of(axis) for axis in piece.new_axes}
    if FREE in fills:
        return None
    if ZERO in fills:
        return jnp.full(section.shape, -offset(section.role, plan.source), dtype)
    if MEAN in fills:  # an array for each dimension of the stream
        units = [
            piece.source.moved(piece.source.layers, embed=i) for i in range(plan.source.embed_dim)
        ]
        olds = [_old_entries(u, piece, section, number, arrays, plan, degree) for u in units]
        block = jnp.mean(jnp.stack(olds).astype(_wide(dtype)), axis=0)
    else:
        block = _old_entries(piece.source, piece, section, number, arrays, plan, degree)

    for place, axis in enumerate(section.axes):
        new = section.shape[place] - block.shape[place]
        if new == 0 or fill_of(axis) == FREE:
            continue
        if fill_of(axis) == MEAN:
            mean = jnp.mean(block.astype(_wide(dtype)), axis=place, keepdims=True)
            mean = jnp.repeat(mean.astype(block.dtype), new, axis=place)
            block = jnp.concatenate([block, mean], axis=place)
        else:
            padding = [(0, new if p == place else 0, 0) for p in range(block.ndim)]
            block = jax.lax.pad(block, jnp.zeros((), block.dtype), padding)
    return block.astype(dtype)


def _old_entries(
    source: Parameter,
    piece: Piece,
    section: Section,
    number: int,
    arrays: Mapping[str, jax.Array],
    plan: GrowthPlan,
    degree: int | None,
) -> jax.Array:
    """The old entries that a section of a piece continues, multiplied as their role demands."""
    array = arrays[source.name]
    old = role_views.split(array, source, plan.source)[number]
    if "layers" in section.axes:
        stop = piece.source_start + piece.length
        axis = section.axes.index("layers")
        old = jax.lax.slice_in_dim(old, piece.source_start, stop, axis=axis)
    by = multiplier(source, piece, section, plan) ** (1 if degree is None else degree)
    if by == 1:
        return old
    added = offset(section.role, plan.source) if degree is None else 0.0
    return (old.astype(_wide(old.dtype)) + added) * by - added


def multiplier(source: Parameter, piece: Piece, section: Section, plan: GrowthPlan) -> float:
    """By what the old entries of a section of a piece are multiplied, that come from `source`."""

    def growth(axis: str) -> float:
        before = size(axis, plan.source, source.layers) or 1
        return (size(axis, plan.target, piece.target.layers) or 1) / before

    axes = (*section.axes, *source.path_axes)
    return factor(section.role, plan.source, axes, growth)


def _wide(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)


def _check_group(parameter: Parameter, plan: GrowthPlan) -> None:
    """Refuses to add queries to groups where an array of heads has no axis for them."""
    rule = parameter.rule
    names = {*rule.axes, *rule.indices}
    heads = names & {"kv_heads", "qk", "v"} and {"query", "attention_out"} & {*rule.roles}
    if heads and "group" not in names and _queries_added(plan):
        raise BlueprintError(
            f"{parameter.path}: the plan adds query heads to each group, but the rule names no "
            f"axis `group`; write (kv_heads group) where the query heads are"
        )


def _queries_added(plan: GrowthPlan) -> bool:
    return any(
        origin is not None and new.queries_per_group > plan.source.layers[origin].queries_per_group
        for new, origin in zip(plan.target.layers, plan.layer_sources, strict=True)
    )


def old_entries(tree: Any, plan: GrowthPlan, blueprint: Blueprint, like: Any = None) -> Any:
    """Which entries of a grown tree are old: a tree of boolean arrays.

    Args:
      tree: arrays of `plan.source`'s shapes.
      plan: the growth step.
      blueprint: what the arrays are.
      like: as for `grow`.
    """
    ones = jax.tree.map(jnp.ones_like, tree)
    # As moments, all of whose new entries come from the free values, here zeros.
    grown = grow(ones, plan, blueprint, zeros, degree=0, like=like)
    return jax.tree.map(lambda mark: mark == 1, grown)


def by_name(tree: Any, blueprint: Blueprint, architecture: Architecture) -> dict[str, jax.Array]:
    """The arrays of a tree by the names that a blueprint gives them."""
    located = blueprint.parameters(tree, architecture)
    return {
        located[leaf.path].name: leaf.value for leaf in pytrees.leaves(tree) if leaf.path in located
    }
