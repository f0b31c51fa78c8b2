"""The account of a whole tree: every array of the larger model, and the blocks that it is made of.

An account follows from the paths and shapes of a tree, a plan and a blueprint. It is made once for
all trees of one form (parameters, their moments, averages), and what grows them folds over it.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

from growth.blueprints import pytrees
from growth.blueprints.blueprint import Blueprint
from growth.blueprints.notation import BlueprintError
from growth.blueprints.parameters import Parameter, misfits, siblings
from growth.expansion.blocks import Block, role_blocks, tile
from growth.expansion.layer_kinds import kind_problems, layers_like, some_layers
from growth.expansion.role_views import AnyArray, ArrayLayout, Sizes, array_layout, fixed_sizes
from growth.expansion.segments import LayerSegment, layer_segments
from growth.rules.growth_plan import GrowthPlan
from growth.rules.roles import ROLES
from growth.types import Array, ParamsLike

# The leaves of a tree by path: the shape of each, None for an empty node.
_Shapes = tuple[tuple[str, tuple[int, ...] | None], ...]


@dataclasses.dataclass(frozen=True)
class ArrayAccount:
    """One array of the larger model, and what each entry of it is.

    Attributes:
      target: which array.
      layout: how it falls into views, one for each role.
      blocks: those of each view.
      sources: (name, layout) of the arrays of the smaller model that it continues, in order.
    """

    target: Parameter
    layout: ArrayLayout
    blocks: tuple[tuple[Block, ...], ...]
    sources: tuple[tuple[str, ArrayLayout], ...]

    def __post_init__(self) -> None:
        for view, blocks in zip(self.layout.views, self.blocks, strict=True):
            if not tile(blocks, view.shape):
                raise AssertionError(f"{self.target.path}: blocks do not tile the array: {blocks}")

    @property
    def name(self) -> str:
        """The name that the array has in trees of arrays by name."""
        return self.target.name

    def split_source(self, name: str, array: AnyArray) -> list[AnyArray]:
        """The views of one of the arrays that it continues."""
        return dict(self.sources)[name].split(array)


@dataclasses.dataclass(frozen=True, eq=False)
class TreeAccount:
    """All arrays of the larger model, by where the smaller one's tree has their like.

    There is one for each form of a tree, so it is hashed as what it is, not by what is in it.

    Attributes:
      plan: the growth step.
      blueprint: what the arrays are.
      names: (path, name) of each array of the smaller tree; the name is what its rule makes of it.
      arrays: (path, arrays) for the first leaf of each kind in the smaller tree: the arrays of that
        kind that the larger model has.
      empty: likewise (path, name) of those that are empty nodes; the name is that of the smaller
        one's node, which they are like.
    """

    plan: GrowthPlan
    blueprint: Blueprint
    names: tuple[tuple[str, str], ...]
    arrays: tuple[tuple[str, tuple[ArrayAccount, ...]], ...]
    empty: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]

    def __iter__(self) -> Iterator[ArrayAccount]:
        """The arrays of the larger model."""
        return (array for _, kind in self.arrays for array in kind)

    def of_source(self, tree: ParamsLike) -> dict[str, Array]:
        """The arrays of a tree of the smaller model by name."""
        names = dict(self.names)
        return {names[leaf.path]: leaf.value for leaf in pytrees.arrays(tree) if leaf.path in names}

    def of_target(self, tree: ParamsLike) -> dict[str, Array]:
        """The arrays of a tree of the larger model by name.

        Raises:
          BlueprintError: an array is missing, unknown, or of another shape.
        """
        arrays = {leaf.name: leaf.value for leaf in pytrees.arrays(tree)}
        shapes = {array.name: array.layout.shape for array in self}
        given = {name: tuple(array.shape) for name, array in arrays.items()}
        if given != shapes:
            self.blueprint.check(tree, self.plan.target)  # which can say what is wrong, mostly
            self._check_kinds_of_layers(tree)
            name = next(name for name in (*shapes, *given) if given.get(name) != shapes.get(name))
            raise BlueprintError(
                f"{name}: the fresh array's shape {given.get(name)} differs from that of what the "
                f"parameters become, {shapes.get(name)}, in an axis that does not grow; or one of "
                f"them has arrays that the other lacks"
            )
        return arrays

    def _check_kinds_of_layers(self, tree: ParamsLike) -> None:
        """Refuses a tree of the larger model whose layers are of other kinds than those here."""
        there = self.blueprint.parameters(tree, self.plan.target).values()
        wanted = some_layers(array.target for array in self)
        for problem in kind_problems(wanted, some_layers(there), self.plan):
            raise BlueprintError(problem)


def source_account(tree: ParamsLike, plan: GrowthPlan, blueprint: Blueprint) -> TreeAccount:
    """The account of what a tree of the smaller model becomes.

    Args:
      tree: arrays of `plan.source`'s shapes, or anything that has their shapes. Leaves that no rule
        matches must be empty nodes.
      plan: the growth step.
      blueprint: what the arrays are.

    Raises:
      BlueprintError: the blueprint does not fit the tree; or an array cannot hold what the
        blueprint wants it to hold, after this step.
    """
    return _source_account(tuple(pytrees.shapes(tree).items()), plan, blueprint)


def target_accounts(
    tree: ParamsLike, plan: GrowthPlan, blueprint: Blueprint
) -> Mapping[str, ArrayAccount]:
    """The accounts of the arrays of a tree of the larger model, by path; empty nodes have none.

    Raises:
      BlueprintError: the blueprint does not fit the tree.
    """
    return _target_accounts(tuple(pytrees.shapes(tree).items()), plan, blueprint)


def array_account(
    target: Parameter, plan: GrowthPlan, shapes: Mapping[str, tuple[int, ...]]
) -> ArrayAccount:
    """The account of one array.

    Args:
      target: the array of the larger model.
      plan: the growth step.
      shapes: those of the arrays of the smaller model that it continues, by name.

    Raises:
      BlueprintError: no array can hold what the blueprint wants it to hold, after this step.
    """
    segments = layer_segments(target, plan)
    first = segments[0].source
    return _account(target, segments, plan, fixed_sizes(first, plan.source, shapes[first.name]))


@functools.lru_cache(maxsize=128)
def _source_account(shapes: _Shapes, plan: GrowthPlan, blueprint: Blueprint) -> TreeAccount:
    parameters = blueprint.match(dict(shapes), plan.source)
    by_name = {parameters[path].name: shape for path, shape in shapes if path in parameters}
    there = {name: shape for name, shape in by_name.items() if shape is not None}
    arrays: dict[str, tuple[ArrayAccount, ...]] = {}
    empty: dict[str, tuple[tuple[str, str], ...]] = {}
    kinds = set()
    some = some_layers(parameters.values())
    for path, first in ((path, parameters[path]) for path, _ in shapes if path in parameters):
        if first.kind in kinds:
            continue
        kinds.add(first.kind)
        layers = layers_like(some[first.kind], plan) if first.kind in some else None
        members = siblings(first, plan.target, layers)
        targets = [(t, _source_names(t, plan, by_name)) for t in members]
        arrays[path] = tuple(
            array_account(t, plan, there) for t, names in targets if names[0] in there
        )
        empty[path] = tuple((t.path, names[0]) for t, names in targets if names[0] not in there)
    names = tuple((path, parameter.name) for path, parameter in parameters.items())
    return TreeAccount(plan, blueprint, names, tuple(arrays.items()), tuple(empty.items()))


@functools.lru_cache(maxsize=128)
def _target_accounts(
    shapes: _Shapes, plan: GrowthPlan, blueprint: Blueprint
) -> Mapping[str, ArrayAccount]:
    parameters = blueprint.match(dict(shapes), plan.target)
    result = {}
    for path, shape in shapes:
        if shape is not None and path in parameters:
            target = parameters[path]
            fixed = fixed_sizes(target, plan.target, shape)
            result[path] = _account(target, layer_segments(target, plan), plan, fixed)
    return result


def _account(
    target: Parameter, segments: Sequence[LayerSegment], plan: GrowthPlan, fixed: Sizes
) -> ArrayAccount:
    _check_groups(target, plan)
    _check_new_layers(target, segments)
    for problem in misfits(target, plan.target):
        raise BlueprintError(problem)
    layout = array_layout(target, plan.target, fixed)
    sources = {s.source.name: array_layout(s.source, plan.source, fixed) for s in segments}
    blocks = tuple(
        role_blocks(segments, number, view=view, sources=sources, plan=plan)
        for number, view in enumerate(layout.views)
    )
    # Where a mean is taken over arrays there are more of them, all alike.
    alike = next(iter(sources.values()))
    for name in (name for view in blocks for block in view for name in block.sources):
        sources.setdefault(name, alike)
    return ArrayAccount(target, layout, blocks, tuple(sources.items()))


def _source_names(
    target: Parameter, plan: GrowthPlan, shapes: Mapping[str, tuple[int, ...] | None]
) -> tuple[str, ...]:
    """The names of what an array continues: all arrays, or all empty nodes."""
    names = tuple(dict.fromkeys(s.source.name for s in layer_segments(target, plan)))
    if len({shapes[name] is None for name in names}) > 1:
        raise BlueprintError(
            f"{target.path}: continues {', '.join(names)} in one array, but some of them are empty"
        )
    return names


def _check_groups(parameter: Parameter, plan: GrowthPlan) -> None:
    """Refuses to add queries to groups where an array of heads has no axis for them."""
    rule = parameter.rule
    names = {*rule.axes, *rule.indices}
    heads = names & {"kv_heads", "qk", "v"} and {"query", "attention_out"} & {*rule.roles}
    if heads and "group" not in names and _queries_added(plan):
        raise BlueprintError(
            f"{parameter.path}: the plan adds query heads to each group, but the rule names no "
            f"axis `group`; write (kv_heads group) where the query heads are"
        )


def _check_new_layers(target: Parameter, segments: Sequence[LayerSegment]) -> None:
    """Refuses to add layers with an array whose role says nothing of new ones."""
    outside = [role for role in target.rule.roles if "layers" not in ROLES[role].fills]
    if outside and any("layers" in segment.new_axes for segment in segments):
        raise BlueprintError(
            f"{target.path}: its role is {outside[0]!r}, which stands outside of layers, so that "
            f"it is not known what it would be in a new layer"
        )


def _queries_added(plan: GrowthPlan) -> bool:
    return any(
        origin is not None and new.queries_per_group > plan.source.layers[origin].queries_per_group
        for new, origin in zip(plan.target.layers, plan.layer_sources, strict=True)
    )
