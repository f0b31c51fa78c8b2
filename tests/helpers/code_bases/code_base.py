"""`CodeBase`: a public code base's way to lay out and to compute a transformer, made small."""

import collections
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from growth import Architecture, Blueprint
from growth.blueprints import pytrees

SIZES = dict(
    vocab_size=11, max_length=8, embed_dim=6, num_layers=2, num_heads=2, qk_dim=4, v_dim=3,
    mlp_dim=5, norm_eps=1e-3,
)  # fmt: skip
GROUPED = SIZES | dict(num_heads=4, num_kv_heads=2)
TOKENS = np.random.default_rng(0).integers(0, 11, (2, 8))

# Sizes that all differ, at which shapes tell axes apart.
DISTINCT = dict(
    vocab_size=101, max_length=31, embed_dim=34, num_layers=3, qk_dim=14, v_dim=11, mlp_dim=58
)


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays by path as dicts in dicts, as Linen has them."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *modules, leaf = path.split("/")
        node = tree
        for module in modules:
            node = node.setdefault(module, {})
        node[leaf] = value
    return tree


def haiku(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Arrays by path as Haiku has them: a dict for each module, under its whole name."""
    tree: dict[str, dict[str, Any]] = collections.defaultdict(dict)
    for path, value in flat.items():
        module, _, leaf = path.rpartition("/")
        tree[module][leaf] = value
    return dict(tree)


@dataclasses.dataclass(frozen=True, eq=False)
class CodeBase:
    """A public code base, made small in our own words.

    Attributes:
      system: the module system that it is written in.
      architecture: what it computes, at sizes of the smallest kind.
      shapes: the architecture to the shape of each array by path, as the code base has them.
      function: (architecture, arrays by path, inputs) to logits.
      blueprint: the one that a person writes.
      contain: arrays by path to a tree with the containers that the code base has.
      one_width: whether an array holds queries or keys and values in one dimension, so that they
        are equally wide and grow together.
      inputs: what `function` takes.
    """

    system: str
    architecture: Architecture
    shapes: Callable[[Architecture], dict[str, tuple[int, ...]]]
    function: Callable[[Architecture, Mapping[str, Any], Any], Any]
    blueprint: Blueprint
    contain: Callable[[Mapping[str, Any]], Any] = nested
    one_width: bool = False
    inputs: Any = dataclasses.field(default_factory=lambda: TOKENS)

    def random(self, architecture: Architecture, seed: int) -> Any:
        """Parameters of any size as numpy arrays, far from an initialization."""
        random = np.random.default_rng(seed)
        shapes = self.shapes(architecture)
        return self.contain({p: 0.6 * random.standard_normal(s) for p, s in shapes.items()})

    def init(self, architecture: Architecture) -> Any:
        """As the other foreign models have it."""
        return self.random(architecture, 7)

    def apply(self, architecture: Architecture, tree: Any, inputs: Any) -> Any:
        """The logits, by numpy or JAX as the arrays of the tree are."""
        arrays = {leaf.name: leaf.value for leaf in pytrees.arrays(tree)}
        return self.function(architecture, arrays, inputs)

    def distinct(self) -> tuple[Any, Architecture]:
        """Shapes at sizes that all differ, and the architecture."""
        architecture = self.architecture.replace(**self.distinct_sizes())
        return jax.eval_shape(lambda: self.init(architecture)), architecture

    def distinct_sizes(self) -> dict[str, int]:
        """Those of `DISTINCT` that such a model can have."""
        sizes = DISTINCT | ({"v_dim": DISTINCT["qk_dim"]} if self.one_width else {})
        grouped = self.architecture.num_kv_heads != self.architecture.num_heads
        sizes |= dict(num_heads=20 if grouped else 5, num_kv_heads=5)
        if self.architecture.patches is not None:
            del sizes["max_length"]
        return sizes
