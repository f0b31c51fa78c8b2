"""Can every new entry learn? Gradients of the new entries of a grown network, and equal units.

A new entry on the free side of a contraction gets its gradient through the zero side, so that it
has none before the first step and one after it: two steps decide.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
import optax

from growth.architecture import Architecture
from growth.blueprints import pytrees
from growth.blueprints.blueprint import Blueprint
from growth.expansion.accounts import ArrayAccount, target_accounts
from growth.expansion.blocks import Kind
from growth.expansion.numpy_backend import mask
from growth.expansion.role_views import RoleView
from growth.rules.axes import AXES
from growth.rules.growth_plan import GrowthPlan
from growth.types import OptState, Params

# A layer, None for the stream's own dimensions, and an axis.
_Home = tuple[int | None, str]

# A gradient is zero where it is this small beside the largest of its array: rounding.
ROUNDING = 1e-13


@dataclasses.dataclass(frozen=True)
class GradientReport:
    """What the first steps after growth showed.

    Attributes:
      new: the number of new entries of each parameter, by path.
      dead: of these, how many never had a gradient, where there are any.
      excused: likewise, but for a reason that growth has nothing to do with: a row of a token or
        position that the batch lacks, an expert that it does not choose, a unit that ReLU holds
        inactive, a bias of keys that are not turned (softmax does not see it).
      locked: pairs of units that are equal and get equal gradients, at least one of them new, as
        "layer, axis: unit and unit". They will stay equal for ever.
    """

    new: Mapping[str, int]
    dead: Mapping[str, int]
    excused: Mapping[str, int]
    locked: tuple[str, ...]


def new_entries(grown: Params, plan: GrowthPlan, blueprint: Blueprint) -> dict[str, np.ndarray]:
    """Which entries of the grown parameters are new: booleans by path.

    Args:
      grown: parameters of `plan.target`, or their shapes.
      plan: the growth step.
      blueprint: what the parameters are.
    """
    accounts = target_accounts(grown, plan, blueprint)
    return {path: ~mask(array, (Kind.OLD,)) for path, array in accounts.items()}


def observe(
    gradient: Callable[[Params], Params],
    grown: Params,
    plan: GrowthPlan,
    blueprint: Blueprint,
    is_new: Mapping[str, np.ndarray],
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

    @jax.jit  # operation by operation it would be compiled for each shape of an array
    def step(here: Params, state: OptState, slopes: Params) -> tuple[Params, OptState]:
        updates, state = tx.update(slopes, state, here)
        return optax.apply_updates(here, updates), state

    here, state = grown, jax.jit(tx.init)(grown)
    gradients = [gradient(here)]
    for _ in range(2):
        here, state = step(here, state, gradients[-1])
        gradients.append(gradient(here))
    accounts = target_accounts(grown, plan, blueprint)
    new: dict[str, int] = {}
    dead: dict[str, int] = {}
    excused: dict[str, int] = {}
    columns = (pytrees.arrays(grown), *(jax.tree.leaves(step) for step in gradients))
    for leaf, *steps in zip(*columns, strict=True):
        fresh = is_new[leaf.path]
        sizes = [np.abs(np.asarray(step)) for step in steps]
        alive = np.any([size > ROUNDING * size.max() for size in sizes], axis=0)
        still = fresh & ~alive
        pardoned = still & _excuses(accounts[leaf.path], alive, fresh, plan)
        new |= {leaf.path: int(fresh.sum())} if fresh.any() else {}
        dead |= {leaf.path: int(n)} if (n := (still & ~pardoned).sum()) else {}
        excused |= {leaf.path: int(n)} if (n := pardoned.sum()) else {}
    return GradientReport(new, dead, excused, tuple(_locked(grown, gradients[0], accounts)))


def _excuses(
    array: ArrayAccount, alive: np.ndarray, new: np.ndarray, plan: GrowthPlan
) -> np.ndarray:
    """Which entries may be without gradient."""
    arch, rule = plan.target, array.target.rule
    excused = ~reached(alive, rule.dims) | array.layout.join(
        [np.full(view.shape, _unseen_by_softmax(view, arch)) for view in array.layout.views],
        np.concatenate,
    )
    if {"embedding", "position"} & {*rule.roles}:
        over = tuple(i for i, names in enumerate(rule.dims) if "embed" in names)
        excused |= np.logical_not((alive & ~new).any(axis=over, keepdims=True))
    if arch.activation == "relu" and "mlp" in rule.axes:
        over = tuple(i for i, names in enumerate(rule.dims) if not {"mlp", "layers"} & {*names})
        excused |= np.logical_not(alive.any(axis=over, keepdims=True))
    return excused


def _unseen_by_softmax(view: RoleView, architecture: Architecture) -> bool:
    """Whether it is a bias of keys that are not turned, be it in an array of its own or not."""
    is_bias = view.role == "key" and "embed" not in view.axes
    return is_bias and not architecture.turns_whole_heads


def reached(alive: np.ndarray, dims: Sequence[tuple[str, ...]]) -> np.ndarray:
    """Which entries belong to a token, an expert, ... that the batch reaches.

    Of an axis that does not grow, some slices may be without any gradient while others have some.

    Args:
      alive: which entries of an array have had a gradient.
      dims: the factors of each dimension.
    """
    growing = {*AXES, "role"}
    over = tuple(place for place, names in enumerate(dims) if growing & {*names})
    here = alive.any(axis=over, keepdims=True)
    return here | ~here.any() | np.zeros(alive.shape, bool)


def _locked(grown: Params, gradient: Params, accounts: Mapping[str, ArrayAccount]) -> Iterator[str]:
    """Pairs of units that have the same values and gradients in all that belongs to them."""
    values, slopes = (_units(tree, accounts) for tree in (grown, gradient))
    old = _old_units(accounts)
    for (layer, axis), parts in values.items():
        table = np.concatenate(parts, axis=1)
        slope = np.concatenate(slopes[layer, axis], axis=1)
        _, kind = np.unique(table, axis=0, return_inverse=True)
        for i, j in _equal_pairs(np.ravel(kind)):
            scale = np.abs(slope).max()
            unequal = np.abs(slope[i] - slope[j]).max() > ROUNDING * scale
            if not unequal and j not in old.get((layer, axis), ()):
                yield f"layer {layer}, {axis}: {i} and {j}"


def _equal_pairs(kind: np.ndarray) -> Iterator[tuple[int, int]]:
    """Neighbours among the units of one kind."""
    for value in np.flatnonzero(np.bincount(kind) > 1):
        members = np.flatnonzero(kind == value)
        yield from zip(members.tolist(), members[1:].tolist(), strict=False)


def _old_units(accounts: Mapping[str, ArrayAccount]) -> dict[_Home, range]:
    """Per layer and axis the units that were there before."""
    result: dict[_Home, range] = {}
    for array in accounts.values():
        for view, blocks in zip(array.layout.views, array.blocks, strict=True):
            for block in (block for block in blocks if block.kind is Kind.OLD):
                entries = dict(zip(view.axes, block.target, strict=True))
                rows = entries.get("layers", range(len(array.target.layers)))
                layers = [array.target.layers[row] for row in rows]
                for axis in {*view.axes} & {*AXES} - {"layers"}:
                    for layer in [None] if axis == "embed" else layers:
                        result[layer, axis] = entries[axis]
    return result


def _units(tree: Params, accounts: Mapping[str, ArrayAccount]) -> dict[_Home, list[np.ndarray]]:
    """Per layer and axis, what belongs to each unit: arrays of shape [units, entries]."""
    result: dict[_Home, list[np.ndarray]] = {}
    for leaf in pytrees.arrays(tree):
        array = accounts[leaf.path]
        layers = array.target.layers
        parts = array.layout.split(np.asarray(leaf.value))
        for view, part in zip(array.layout.views, parts, strict=True):
            for axis in {*view.axes} & {*AXES} - {"layers"}:
                rows = np.moveaxis(part, view.axes.index(axis), 0)
                names = [name for name in view.axes if name != axis]
                if axis == "embed":
                    result.setdefault((None, axis), []).append(rows.reshape(len(rows), -1))
                elif "layers" in names:
                    for at, one in enumerate(np.moveaxis(rows, 1 + names.index("layers"), 0)):
                        home = (layers.start + at, axis)
                        result.setdefault(home, []).append(one.reshape(len(one), -1))
                elif layers:
                    home = (layers.start, axis)
                    result.setdefault(home, []).append(rows.reshape(len(rows), -1))
    return result
