"""Pytrees by path: naming the leaves of a tree, and building a tree whose paths hold other indices.

Any pytree will do. The path of a leaf is its keys joined by '/', as in `layers_0/mlp/up/kernel`. A
box around an array, such as Flax's `Partitioned` or a variable of NNX, is no part of the path. An
empty node, such as None or optax's `MaskedNode`, stands for a leaf that is not there and is treated
as a leaf.
"""

import collections
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey
from jaxtyping import PyTree

from growth.blueprints.notation import COLLECTION
from growth.errors import InputError

Key = Any  # one of the four above, or what a custom node has
Keys = tuple[Key, ...]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A leaf, and the way to it.

    Attributes:
      keys: JAX's key path.
      path: the keys joined by '/'.
      value: the leaf itself.
    """

    keys: Keys
    path: str
    value: Any

    @property
    def name(self) -> str:
        """The path as rules know it: without the collection before it."""
        return self.path.removeprefix(COLLECTION)


def is_empty(node: PyTree) -> bool:
    """Whether a node has no children and is no leaf."""
    return not jax.tree.flatten(node, is_leaf=lambda child: child is not node)[0]


def leaves(tree: PyTree) -> list[Leaf]:
    """The leaves of a tree, empty nodes included, in JAX's order."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_empty)
    inner = {keys[:depth] for keys, _ in flat for depth in range(len(keys) + 1)}
    children = collections.Counter(keys[:-1] for keys in inner)
    return [Leaf(keys, "/".join(_names(keys, children)), value) for keys, value in flat]


def arrays(tree: PyTree) -> list[Leaf]:
    """The leaves of a tree without empty nodes: those that JAX's own functions see."""
    return [leaf for leaf in leaves(tree) if not is_empty(leaf.value)]


def shapes(tree: PyTree) -> dict[str, tuple[int, ...] | None]:
    """The shape of each leaf of a tree by path; None for an empty node.

    Raises:
      InputError: a leaf has no shape, such as a number or a function; it is named.
    """
    result: dict[str, tuple[int, ...] | None] = {}
    for leaf in leaves(tree):
        if is_empty(leaf.value):
            result[leaf.path] = None
        elif hasattr(leaf.value, "shape"):
            result[leaf.path] = tuple(leaf.value.shape)
        else:
            raise InputError(
                f"{leaf.path} is {leaf.value!r}, but the leaves of parameters must be arrays: take "
                f"them apart from what else the module holds, as eqx.partition(model, "
                f"eqx.is_inexact_array) and nnx.state(model, nnx.Param) do"
            )
    return result


def with_names(keys: Keys, path: str) -> Keys:
    """The keys of another path of the same form: `path` differs only in indices."""
    names = path.split("/")
    renamed = []
    for key in keys:
        # A key may itself hold slashes, as Haiku's module names do.
        width = _name(key).count("/") + 1
        name, names = "/".join(names[:width]), names[width:]
        renamed.append(_renamed(key, name) if names or name else key)
    return tuple(renamed)


def build(items: Sequence[tuple[Keys, Leaf, Any]], tree: PyTree) -> PyTree:
    """A tree of given values, its containers made like those of another tree.

    Args:
      items: for each leaf of the result its keys, a leaf of `tree` that it is modelled on, and its
        value. The two have the same depth, and differ in indices only.
      tree: the tree that holds the models.
    """
    models = {model.keys[:depth] for _, model, _ in items for depth in range(len(model.keys) + 1)}
    return _build([(keys, model.keys, value, tree) for keys, model, value in items], (), models)


def _build(
    items: list[tuple[Keys, Keys, Any, PyTree]], at: Keys, models: Collection[Keys]
) -> PyTree:
    """A node; `at` is where its own model is, and `models` are all that are modelled on."""
    keys, _, value, node = items[0]
    if not keys:
        return value
    groups: dict[Key, list[tuple[Keys, Keys, Any, PyTree]]] = {}
    at_child: dict[Key, Keys] = {}
    for keys, model, value, parent in items:
        child = _children(parent)[model[0]]
        groups.setdefault(keys[0], []).append((keys[1:], model[1:], value, child))
        at_child.setdefault(keys[0], (*at, model[0]))
    # A new layer, too, has what stands without an array beside those of the one it is like: empty
    # nodes, and modules of nothing else, such as dropout. What no leaf is like is there no more.
    built = {
        key: child
        for key, child in _children(node).items()
        if (*at, key) in models and not jax.tree.leaves(child)
    }
    built |= {key: _build(group, at_child[key], models) for key, group in groups.items()}
    if isinstance(node, Mapping):
        kind: Any = type(node)  # takes a dict: a Mapping need not, but every one in use does
        return kind({key.key: value for key, value in built.items()})
    if type(node) in (list, tuple):
        return type(node)(value for _, value in sorted(built.items(), key=lambda i: i[0].idx))
    treedef = jax.tree.structure(node, is_leaf=lambda x: x is not node)
    return jax.tree.unflatten(treedef, [built[key] for key in _children(node)])


def _children(node: PyTree) -> dict[Key, PyTree]:
    flat, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
    return {keys[0]: child for keys, child in flat}


def _names(keys: Keys, children: Mapping[Keys, int]) -> list[str]:
    boxed = len(keys) > 1 and keys[-1] == GetAttrKey("value") and children[keys[:-1]] == 1
    return [_name(key) for key in (keys[:-1] if boxed else keys)]


def _name(key: Key) -> str:
    match key:
        case DictKey(key=name) | FlattenedIndexKey(key=name):
            return str(name)
        case SequenceKey(idx=index):
            return str(index)
        case GetAttrKey(name=name):
            return name
    return str(key)


def _renamed(key: Key, name: str) -> Key:
    match key:
        case DictKey(key=int()):
            return DictKey(int(name))
        case DictKey():
            return DictKey(name)
        case SequenceKey():
            return SequenceKey(int(name))
    if name != _name(key):
        raise InputError(
            f"{_name(key)!r} is an attribute, and cannot become {name!r} in growth unless fresh is "
            f"a tree that has it"
        )
    return key
