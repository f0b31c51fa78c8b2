"""Which group of an optimizer each parameter is in, and whether growth moves it to another.

`optax.masked` and `optax.partition` take a function from parameters to groups. Where that looks at
sizes, a parameter may change its group as it grows, and what the optimizer keeps of it in one group
means nothing in the other. A parameter that is all new has nothing to carry, and may be in any.
"""

from collections.abc import Iterator, Mapping

import jax
import optax

from growth.blueprints import pytrees
from growth.expansion.accounts import TreeAccount
from growth.expansion.blocks import Kind
from growth.optimizer.state_form import OptimizerStateError
from growth.types import OptState, ParamsLike

_Grouped = optax.MaskedState | optax.PartitionState


def check_groups(
    before: OptState, begun: OptState, params: ParamsLike, grown: ParamsLike, account: TreeAccount
) -> None:
    """Checks that every parameter that goes on is in the group in which it was.

    Args:
      before: the state that the smaller parameters begin with, or its shapes.
      begun: likewise the larger ones.
      params: the smaller parameters.
      grown: the larger ones.
      account: the account of the parameters.

    Raises:
      OptimizerStateError: one changes its group; it is named, with both groups.
    """
    source_paths = {name: path for path, name in account.names}
    shapes = pytrees.shapes(params)
    for old, new in zip(_groupings(before, params), _groupings(begun, grown), strict=True):
        for array in account:
            blocks = [block for view in array.blocks for block in view if block.kind is Kind.OLD]
            for path in (source_paths[block.source] for block in blocks):
                target = array.target.path
                one, other = old.get(path), new.get(target)
                if one is not None and other is not None and one != other:
                    raise OptimizerStateError(
                        f"{target} is {one} at {shapes[path]}, and {other} as it becomes "
                        f"{array.layout.shape}: what the optimizer keeps of it cannot go from one "
                        f"to the other. Let masks and labels depend on what growth leaves alone, "
                        f"such as names and numbers of axes"
                    )


def _groupings(state: OptState, params: ParamsLike) -> Iterator[Mapping[str, str]]:
    """For each mask and each partition of an optimizer the group of parameters by path, in words.

    Parameters whose group keeps nothing of any parameter are left out.
    """
    for node in jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, _Grouped)):
        if isinstance(node, optax.MaskedState):
            members = _members(node.inner_state, params) or {}
            yield {
                path: f"{'in' if here else 'outside'} the mask" for path, here in members.items()
            }
            yield from _groupings(node.inner_state, params)
        elif isinstance(node, optax.PartitionState):
            inner = {label: masked.inner_state for label, masked in node.inner_states.items()}
            yield _labels({label: _members(part, params) for label, part in inner.items()})
            for part in inner.values():
                yield from _groupings(part, params)


def _labels(members: Mapping[str, Mapping[str, bool] | None]) -> dict[str, str]:
    """The label of each parameter; a group that keeps nothing has those that no other has."""
    known = {label: paths for label, paths in members.items() if paths is not None}
    rest = " or ".join(repr(label) for label in members if label not in known)
    result: dict[str, str] = {}
    for label, paths in known.items():
        for path, here in paths.items():
            if here:
                result[path] = f"labelled {label!r}"
            else:
                result.setdefault(path, f"labelled {rest}")
    return result


def _members(state: OptState, params: ParamsLike) -> dict[str, bool] | None:
    """Which parameters an optimizer behind a mask keeps something of; None if of none at all."""
    structure = jax.tree.structure(params)
    assert structure is not None

    def parts(node: OptState) -> list[OptState] | None:
        try:
            return structure.flatten_up_to(node)
        except ValueError:
            return None

    paths = [leaf.path for leaf in pytrees.arrays(params)]
    if len(paths) == 1:  # anything is shaped like a single array
        return None
    nodes = jax.tree.leaves(state, is_leaf=lambda node: parts(node) is not None)
    fitting = [found for node in nodes if (found := parts(node)) is not None]
    if not fitting:
        return None
    result = dict.fromkeys(paths, False)
    for found in fitting:
        for path, part in zip(paths, found, strict=True):
            result[path] |= bool(jax.tree.leaves(part))
    return result
