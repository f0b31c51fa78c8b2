"""Any pytree can grow: containers, boxes and empty nodes are kept, and paths name the leaves."""

import collections
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from flax import struct
from flax.core import FrozenDict

import growth
from growth import Architecture, Blueprint, BlueprintError, InputError
from growth.blueprints import pytrees

ARCHITECTURE = Architecture(
    vocab_size=11, max_length=8, embed_dim=2, num_layers=2, num_heads=1, mlp_dim=3, qk_dim=2
)
PLAN = growth.compose(growth.mlp_expansion(4), growth.layer_addition(1, 1))(ARCHITECTURE)


class Attention(NamedTuple):
    query: Any
    value: Any


@struct.dataclass
class Layers:
    layers_0: Any
    layers_1: Any


def up(value, width=3):
    return np.full((2, width), value, np.float32)


def grow(tree, path, plan=PLAN):
    """Every layer's MLP grows by a column of 9; the new layer, in the middle, is all 9."""
    blueprint = Blueprint([(path, "mlp_in", "embed mlp")])
    key = jax.random.key(0, impl="rbg")
    fresh = jax.eval_shape(
        lambda: growth.expand(tree, plan, key=key, blueprint=blueprint, init="copy")
    )
    fresh = jax.tree.map(lambda leaf: np.full(leaf.shape, 9, leaf.dtype), fresh)
    return growth.expand(tree, plan, blueprint=blueprint, fresh=fresh)


def first_rows(grown):
    return [leaf[0].tolist() for leaf in jax.tree.leaves(grown)]


GROWN = [[1, 1, 1, 9], [9, 9, 9, 9], [2, 2, 2, 9]]


@pytest.mark.parametrize(
    ("tree", "path", "kind"),
    [
        ({"l0": up(1), "l1": up(2)}, "l{layers}", dict),
        ({0: up(1), 1: up(2)}, "{layers}", dict),
        ([up(1), up(2)], "{layers}", list),
        ((up(1), up(2)), "{layers}", tuple),
        (FrozenDict(l0=up(1), l1=up(2)), "l{layers}", FrozenDict),
        (collections.OrderedDict(l0=up(1), l1=up(2)), "l{layers}", collections.OrderedDict),
        ({"net/~/l_0": up(1), "net/~/l_1": up(2)}, "net/~/l_{layers}", dict),
        ([{"w": {"up": up(1)}}, {"w": {"up": up(2)}}], "{layers}/w/up", list),
        ([Attention(None, up(1)), Attention(None, up(2))], "{layers}/value", list),
        ([(None, up(1)), (None, up(2))], "{layers}/1", list),
        ([Attention((), (up(1),)), Attention((), (up(2),))], "{layers}/value/0", list),
    ],
    ids=str,
)
def test_containers_stay_what_they_are(tree, path, kind):
    grown = grow(tree, path)
    assert type(grown) is kind
    assert first_rows(grown) == GROWN


def test_a_field_called_value_is_a_name_unless_it_is_a_box():

    def paths(tree):
        return [leaf.path for leaf in pytrees.leaves(tree)]

    assert paths({"a": Attention(1, 2)}) == ["a/query", "a/value"]
    assert paths({"a": Attention({"w": 1}, 2)}) == ["a/query/w", "a/value"]
    assert paths({"a": nn.LogicallyPartitioned(1, ("embed",))}) == ["a"]


def test_boxes_stay_around_what_grows():
    tree = [nn.LogicallyPartitioned(up(i), ("embed", "mlp")) for i in (1, 2)]
    grown = grow(tree, "{layers}")
    assert all(isinstance(box, nn.LogicallyPartitioned) for box in grown)
    assert [box.names for box in grown] == [("embed", "mlp")] * 3
    assert first_rows(grown) == GROWN


@struct.dataclass
class MoreLayers(Layers):
    layers_2: Any


def test_attributes_become_more_only_where_fresh_has_them():
    tree = Layers(up(1), up(2))
    with pytest.raises(InputError, match="'layers_0' is an attribute, and cannot become"):
        grow(tree, "layers_{layers}")
    blueprint = Blueprint([("layers_{layers}", "mlp_in", "embed mlp")])
    fresh = MoreLayers(*(up(9, width=4) for _ in range(3)))
    more = growth.expand(tree, PLAN, blueprint=blueprint, fresh=fresh)
    assert isinstance(more, MoreLayers)
    assert first_rows(more) == GROWN
    wider = grow(tree, "layers_{layers}", growth.mlp_expansion(4)(ARCHITECTURE))
    assert first_rows(wider) == [[1, 1, 1, 9], [2, 2, 2, 9]]


def test_empty_nodes_stay_and_new_layers_have_their_own():
    empty = {"dropout": {}, "mask": None, "state": optax.MaskedNode()}
    tree = {f"l{i}": {"up": up(i + 1), **empty} for i in range(2)}
    grown = grow(tree, "l{layers}/up")
    assert first_rows(grown) == GROWN
    assert all(set(layer) == {"up", *empty} for layer in grown.values())

    blueprint = Blueprint([("l{layers}/up", "mlp_in", "embed mlp")])
    fresh = {f"l{i}": {"up": up(9, width=4), **empty} for i in range(3)}
    like_fresh = growth.expand(tree, PLAN, blueprint=blueprint, fresh=fresh)
    assert jax.tree.structure(like_fresh) == jax.tree.structure(fresh)
    assert first_rows(like_fresh) == GROWN


HOLLOW = {
    "None": None,
    "a module of None": Attention(None, None),
    "modules in modules": {"a": [Attention({}, None)], "b": ()},
    "equinox": eqx.filter(eqx.nn.Dropout(0.1), eqx.is_inexact_array),
}


@pytest.mark.parametrize("name", HOLLOW)
@pytest.mark.parametrize("layer", [dict, eqx.nn.Lambda], ids=["dict", "attribute"])
def test_what_holds_no_array_stands_in_new_layers_too(name, layer):
    """Dropout, activations and switches of a module, once its arrays are taken apart."""

    def made(value, width=3):
        parts = {"up": up(value, width), "rest": HOLLOW[name]}
        return parts if layer is dict else eqx.nn.Lambda(parts)

    tree = {"layers": [made(1), made(2)]}
    path = "layers/{layers}/up" if layer is dict else "layers/{layers}/fn/up"
    grown = grow(tree, path)
    fresh = {"layers": [made(9, width=4) for _ in range(3)]}
    assert jax.tree.structure(grown) == jax.tree.structure(fresh)
    assert first_rows(grown) == GROWN


def test_an_empty_node_whose_layer_is_gone_goes_with_it():
    """As in moments behind a mask, where runs of layers that have become equal are merged."""
    architecture = ARCHITECTURE.replace(mlp_dim=(3, 4))
    plan = growth.mlp_expansion(4)(architecture)
    masked = {f"run{i}": optax.MaskedNode() for i in range(2)}
    tree = masked | {"other": np.zeros(1)}
    rules = [("run{layers}", "mlp_in", "layers embed mlp"), ("other", "position", "1")]
    grown = growth.expand(
        tree, plan, key=jax.random.key(0), blueprint=Blueprint(rules), init="copy"
    )
    assert set(grown) == {"run0", "other"}
    assert grown["run0"] == optax.MaskedNode()


@pytest.mark.parametrize(
    "leaf", [0.5, "gelu", jax.nn.gelu, True], ids=lambda leaf: type(leaf).__name__
)
def test_a_leaf_that_is_no_array_is_named(leaf):
    tree = [{"up": up(1), "rest": leaf}, {"up": up(2), "rest": leaf}]
    with pytest.raises(InputError, match=r"^0/rest is .* must be arrays: .*eqx\.partition"):
        growth.expand(
            tree,
            PLAN,
            key=jax.random.key(0),
            blueprint=Blueprint([("{layers}/up", "mlp_in", "embed mlp")]),
            init="copy",
        )


def test_an_empty_node_that_stands_for_an_array_grows_with_its_layer():
    """As in the moments of an optimizer that leaves some layers alone."""
    masked = optax.MaskedNode()
    grown = grow({"l0": masked, "l1": up(2)}, "l{layers}")
    assert grown["l0"] == masked
    assert grown["l1"] == masked  # the new layer is like the one below it
    assert grown["l2"][0].tolist() == GROWN[2]
    grown = grow({"l0": up(1), "l1": masked}, "l{layers}")
    assert grown["l2"] == masked
    assert first_rows(grown) == GROWN[:2]


def test_an_array_and_an_empty_node_cannot_become_one_array():
    architecture = ARCHITECTURE.replace(mlp_dim=(3, 4))
    plan = growth.mlp_expansion(5)(architecture)
    blueprint = Blueprint([("run{layers}", "mlp_in", "layers embed mlp")])
    tree = {"run0": np.zeros((1, 2, 3)), "run1": optax.MaskedNode()}
    with pytest.raises(BlueprintError, match="run0: continues run0, run1 in one array, but some"):
        growth.expand(tree, plan, key=jax.random.key(0), blueprint=blueprint, init="copy")


def test_a_tree_may_be_a_single_array():
    plan = growth.mlp_expansion(4)(ARCHITECTURE)
    blueprint = Blueprint([("", "mlp_in", "layers embed mlp")])
    grown = growth.expand(
        np.ones((2, 2, 3)), plan, blueprint=blueprint, fresh=np.full((2, 2, 4), 5)
    )  # fmt: skip
    np.testing.assert_array_equal(grown, [[[1, 1, 1, 5]] * 2] * 2)


def test_the_source_is_not_touched():
    tree = [up(1), up(2)]
    grow(tree, "{layers}")
    assert len(tree) == 2
    assert tree[0].tolist() == up(1).tolist()
