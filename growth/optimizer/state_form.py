"""The form in which the state of an optimizer comes: other containers, the same leaves.

`tx.init` makes tuples, named tuples and the containers of the parameters. The same state comes in
other forms: `nnx.Optimizer` puts a variable around every leaf, `nnx.state` makes mappings of all of
it, a checkpoint restored without a target has lists and dicts. What all have in common are the
paths of the leaves. So a state is laid out as `tx.init` has it, grows, and goes back as it came.
"""

import collections
import functools
import re
from collections.abc import Mapping
from typing import NoReturn

import jax
import jax.numpy as jnp

from growth.blueprints import pytrees
from growth.errors import InputError
from growth.types import OptState

_NUMBER = re.compile(r"\d+")


class OptimizerStateError(InputError):
    """An optimizer state cannot be grown; the message names its type or the leaf."""


def laid_out(state: OptState, like: OptState, problem: str) -> OptState:
    """The leaves of a state in the containers of another.

    Args:
      state: the state, in any form.
      like: arrays or their shapes, in the form that is wanted.
      problem: what it means if they differ: the beginning of the error.

    Raises:
      OptimizerStateError: a path, a shape or a dtype differs; the first is named.
    """
    given, wanted = by_path(state), by_path(like)
    for path in (*wanted, *given):
        if path not in given:
            what, is_wrong = f"{path} is missing", True
        elif path not in wanted:
            what, is_wrong = f"{path} is there, but tx.init makes none", True
        else:
            have, want = given[path].value, wanted[path].value
            is_wrong = (jnp.shape(have), jnp.result_type(have)) != (want.shape, want.dtype)
            what = (
                f"{path} is {jnp.result_type(have)} {jnp.shape(have)}, but it must be {want.dtype} "
                f"{want.shape}"
            )
        if is_wrong:
            _refuse(state, problem, what, {*given} == {*wanted}, [*wanted])
    values = [given[path].value for path in wanted]
    return jax.tree.unflatten(jax.tree.structure(like), values)


def in_form_of(given: OptState, larger: OptState, before: OptState) -> OptState:
    """A state of larger parameters, in the containers that a state came in.

    What is made of nothing but lists and dicts comes from a checkpoint, and stays as `tx.init` has
    it: an optimizer could do nothing with less.

    Args:
      given: the state as it came.
      larger: the larger one, as `tx.init` has it.
      before: the smaller one, as `tx.init` has it.
    """
    came_so, made_so = jax.tree.structure(given), jax.tree.structure(before)
    assert came_so is not None
    if is_plain(given) or came_so == made_so:
        return larger
    models = by_path(given, empty=True)
    of_form = collections.defaultdict(list)
    for path in models:
        of_form[_NUMBER.sub("0", path)].append(path)
    items = []
    for path, leaf in by_path(larger, empty=True).items():
        alike = of_form[_NUMBER.sub("0", path)]
        if not alike and pytrees.is_empty(leaf.value):
            continue  # mappings leave out what holds nothing
        if not alike:
            raise OptimizerStateError(f"{path}: the state that was given has nothing like it")
        model = models[min(alike, key=functools.partial(_differing, path))]
        keys = pytrees.with_names(model.keys, path)
        items.append((keys, model, leaf.value))
    return pytrees.build(items, given)


def is_plain(state: OptState) -> bool:
    """Whether a state is made of lists, tuples and mappings alone; those of optax are not."""
    if isinstance(state, Mapping):
        return all(is_plain(part) for part in state.values())
    if type(state) in (list, tuple):
        return all(is_plain(part) for part in state)
    return jax.tree_util.all_leaves([state]) or state is None


def by_path(state: OptState, *, empty: bool = False) -> dict[str, pytrees.Leaf]:
    """The leaves of a state by path; `value`, where it names a box, is no part of that.

    A checkpoint has boxes as mappings.

    Args:
      state: the state.
      empty: whether empty nodes are among the leaves.
    """
    leaves = [leaf for leaf in pytrees.leaves(state) if empty or not pytrees.is_empty(leaf.value)]
    number = collections.Counter(
        "/".join(names[:depth])
        for names in (leaf.path.split("/") for leaf in leaves)
        for depth in range(len(names))
    )
    result = {}
    for leaf in leaves:
        parent, _, last = leaf.path.rpartition("/")
        is_boxed = last == "value" and number[parent] == 1
        result[parent if is_boxed else leaf.path] = leaf
    return result


def _differing(path: str, other: str) -> int:
    """How many of the numbers in two paths of one form differ."""
    pairs = zip(_NUMBER.findall(path), _NUMBER.findall(other), strict=True)
    return sum(a != b for a, b in pairs)


def _refuse(
    state: OptState, problem: str, what: str, same_paths: bool, wanted: list[str]
) -> NoReturn:
    hint = ""
    inner = [path for path in by_path(state) if path.split("/")[0] == "opt_state"]
    if inner:
        hint = ". A whole optimizer or training state was given: give its opt_state alone"
    elif is_plain(state) and not same_paths:
        hint = (
            ". It is made of lists and dicts, as a checkpoint restored without a target is, but "
            "not in the order of this optimizer: restore it with tx.init(params) as the target"
        )
    raise OptimizerStateError(f"{problem}: {what}{hint}")
