"""Blueprints: the notation, what they find in a tree, and what they say when something is wrong."""

import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import growth
from growth import Architecture, Blueprint, BlueprintError
from growth.expansion import role_views
from growth.models import blueprint as reference_blueprint
from tests.helpers import networks

ARCHITECTURE = Architecture(
    vocab_size=11, max_length=8, embed_dim=6, num_layers=2, num_heads=4, num_kv_heads=2,
    qk_dim=4, v_dim=3, mlp_dim=7, position="none",
)  # fmt: skip
UP = ("layers_{layers}/up", "mlp_in", "embed mlp")


def ups(number=2, shape=(6, 7)):
    return {f"layers_{i}": {"up": np.zeros(shape)} for i in range(number)}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (("up", "mlp", "embed mlp"), "'mlp' is no role; the roles are embedding, position"),
        (("up", ("mlp_in", "up"), "embed (role mlp)"), "'up' is no role"),
        (("up", "mlp_in", "embed, mlp"), "axes are names"),
        (("up", "mlp_in", "embed (mlp"), "axes are names"),
        (("up", "mlp_in", "embed kv_heads_group_qk_and_all_that,"), "axes are names"),
        (("up", "mlp_in", "embed embed"), "the axis 'embed' stands there twice"),
        (("up_{mlp}", "mlp_in", "embed mlp"), "the axis 'mlp' stands there twice"),
        (("up_{mlp}_{mlp}", "mlp_in", "embed"), "the axis 'mlp' stands there twice"),
        (("up", "mlp_in", "embed qk"), "a parameter of role 'mlp_in' has no axis 'qk'"),
        (("q", "query", "embed heads qk"), r"'heads' is no axis; write \(kv_heads group\)"),
        (("q", "query", "embed head_dim"), "'head_dim' is no axis; write qk or v"),
        (("q_{layer}", "query", "embed qk"), "'layer' is no axis; write layers"),
        (("qkv", ("query", "key"), "embed qk"), "an axis `role` stands there if, and only if"),
        (("q", "query", "embed (role qk)"), "an axis `role` stands there if, and only if"),
        (("e", "embedding", "(some names) embed"), "of some and names only one can be told"),
        (("e{a-b}", "embedding", "vocab embed"), "braces in a path hold a name"),
        (("e{2}", "embedding", "vocab embed"), "braces in a path hold a name"),
        (("e{", "embedding", "vocab embed"), "braces in a path hold a name"),
    ],
    ids=str,
)
def test_a_malformed_rule_is_quoted_with_what_is_wrong(rule, message):
    with pytest.raises(BlueprintError, match=message) as error:
        Blueprint([rule])
    assert repr(rule[0]) in str(error.value)


def test_blueprints_are_values():
    rules = [("qkv", ["query", "key"], "embed (role kv_heads qk)"), UP]
    assert Blueprint(rules) == Blueprint(tuple(map(tuple, rules)))
    assert hash(Blueprint(rules)) == hash(Blueprint(rules))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (ups() | {"bias": np.zeros(3)}, "bias: matched by no rule"),
        ({"layers_0": {"up": np.zeros((6, 7))}}, "layer 0 has layers_{layers}/up, layer 1 has not"),
        (ups(3), "layers_2/up: no layer has this index; the architecture has 2 layers"),
        (ups(shape=(6, 7, 1)), r"layers_0/up: shape \(6, 7, 1\) has 3 dimensions, but the rule na"),
        (
            ups(shape=(7, 6)),
            r"layers_1/up: shape \(7, 6\) does not fit 'embed mlp': \(embed\) is 6",
        ),
        ({"params": ups(shape=(6, 8))}, r"params/layers_1/up: .*\(mlp\) is 7 in the architecture"),
    ],
    ids=range(6),
)
def test_what_does_not_fit_is_said_by_path(tree, message):
    with pytest.raises(BlueprintError, match=message):
        Blueprint([UP]).check(tree, ARCHITECTURE)
    Blueprint([UP]).check(ups(), ARCHITECTURE)
    Blueprint([UP]).check({"params": ups()}, ARCHITECTURE)


def test_all_that_does_not_fit_is_listed_up_to_twenty():
    tree = {f"{letter}_bias": np.zeros(3) for letter in string.ascii_letters[:30]}
    with pytest.raises(BlueprintError, match=r"A_bias: [\s\S]*p_bias: [\s\S]*\.\.\. and 10 more"):
        Blueprint([UP]).check(tree, ARCHITECTURE)


def test_what_no_rule_matches_is_said_once_with_the_nearest_rule_and_where_it_differs():
    tree = {f"layers_{i}": {"upp": np.zeros((6, 7))} for i in range(12)}
    with pytest.raises(BlueprintError) as error:
        Blueprint([UP]).check(tree, ARCHITECTURE)
    assert str(error.value).splitlines()[1:] == [
        "  layers_0/upp: matched by no rule (nor 11 more of its kind); the nearest is "
        "'layers_{layers}/up', which has 'up' for 'upp'"
    ]


def test_what_some_layers_have_is_one_sentence_and_its_way_out_works():
    architecture = ARCHITECTURE.replace(num_layers=3, position="none")
    rules = [UP, ("layers_{layers}/down", "mlp_out", "mlp embed")]
    odd = ("layers_{layers}/q", "query", "embed (kv_heads group) qk")
    tree = {
        f"layers_{i}": {"up": np.ones((6, 7)), "down": np.ones((7, 6))}
        | ({"q": np.ones((6, 4, 4))} if i == 2 else {"gate": np.ones((6, 9))})
        for i in range(3)
    }
    gate = ("layers_{layers}/gate", "mlp_in", "embed gates")
    with pytest.raises(BlueprintError) as error:
        Blueprint([*rules, odd, gate]).check(tree, architecture)
    (sentence,) = str(error.value).splitlines()[1:]
    assert "layers 0 and 1 have layers_{layers}/gate, layer 2 has not" in sentence
    assert "layer 2 has layers_{layers}/q, layers 0 and 1 have not" in sentence
    assert sentence.endswith("mark the index of what only some have: layers_{layers?}/gate")
    marked = [(path.replace("}", "?}"), *rest) for path, *rest in (odd, gate)]
    one_by_one = [
        (path.format(layers=i), *rest)
        for i in range(3)
        for path, *rest in ([odd] if i == 2 else [gate])
    ]
    plan = growth.grow_to(mlp_dim=9, embed_dim=8)(architecture)
    for some in (marked, one_by_one):
        grown = growth.expand(
            tree, plan, key=networks.KEY, blueprint=Blueprint([*rules, *some]), init="copy"
        )
        assert grown["layers_2"]["q"].shape == (8, 4, 4)
        assert grown["layers_1"]["gate"].shape == (8, 9)


def test_several_rules_for_one_path_are_refused():
    rules = [UP, ("layers_{layers}/{name}", "mlp_in", "embed mlp")]
    with pytest.raises(BlueprintError, match=r"matched by 'layers_{layers}/up' and 'layers_"):
        Blueprint(rules).check(ups(), ARCHITECTURE)


def test_an_index_in_the_path_runs_from_zero_to_its_size():
    blueprint = Blueprint([("{side}/{layers}/heads_{kv_heads}", "value", "embed v")])

    def heads(n):
        return {f"heads_{i}": np.zeros((6, 3)) for i in range(n)}

    blueprint.check({"left": [heads(2), heads(2)], "right": [heads(2), heads(2)]}, ARCHITECTURE)
    with pytest.raises(BlueprintError, match="right/1/heads_1: missing, though right/0/heads_0"):
        blueprint.check({"right": [heads(2), heads(1)]}, ARCHITECTURE)
    with pytest.raises(BlueprintError, match="kv_heads is 2, but the architecture has only 2"):
        blueprint.check({"right": [heads(2), heads(3)]}, ARCHITECTURE)


def test_runs_of_layers_are_named_by_their_first():
    architecture = ARCHITECTURE.replace(num_layers=3, mlp_dim=(7, 7, 9))
    blueprint = Blueprint([("run_{layers}", "mlp_in", "layers embed mlp")])
    good = {"run_0": np.zeros((2, 6, 7)), "run_2": np.zeros((1, 6, 9))}
    blueprint.check(good, architecture)
    with pytest.raises(BlueprintError, match=r"run_1: .* runs of equal layers start at 0, 2"):
        blueprint.check(good | {"run_1": np.zeros((1, 6, 7))}, architecture)
    with pytest.raises(BlueprintError, match=r"run_0: shape .*\(layers\) is 2"):
        blueprint.check(good | {"run_0": np.zeros((3, 6, 7))}, architecture)


def test_one_array_cannot_hold_layers_of_unequal_shape():
    blueprint = Blueprint([("up", "mlp_in", "layers embed mlp")])
    tree = {"up": np.zeros((2, 6, 7), np.float32)}
    plan = growth.mlp_expansion(9, layers=(1,))(ARCHITECTURE)
    message = "up: one array holds these layers, so mlp must be the same in all of them, .* 7, 9"
    with pytest.raises(BlueprintError, match=message):
        growth.expand(tree, plan, key=networks.KEY, blueprint=blueprint, init="copy")
    with pytest.raises(BlueprintError, match=message):
        blueprint.check(tree, plan.target)


def test_what_is_stacked_along_a_dimension_of_its_own_must_stay_of_one_shape():
    blueprint = Blueprint([("qkv", ("query", "key", "value"), "role embed kv_heads qk")])
    architecture = ARCHITECTURE.replace(num_heads=2, v_dim=4)
    tree = {"qkv": np.ones((3, 6, 2, 4), np.float32)}
    blueprint.check(tree, architecture)
    for step in (growth.attention_expansion(6), growth.heads_expansion(6)):
        with pytest.raises(BlueprintError, match=r"qkv: \(qk\) must be the same for all that the"):
            growth.expand(
                tree, step(architecture), key=networks.KEY, blueprint=blueprint, init="copy"
            )
    both = growth.compose(growth.attention_expansion(6), growth.heads_expansion(6))(architecture)
    grown = growth.expand(tree, both, key=networks.KEY, blueprint=blueprint, init="copy")
    assert grown["qkv"].shape == (3, 6, 2, 6)


def test_queries_cannot_be_added_where_the_rule_has_no_axis_for_them():
    blueprint = Blueprint([("q_{kv_heads}", "query", "embed qk"), ("u", "unembed", "embed vocab")])
    architecture = ARCHITECTURE.replace(num_heads=2)
    tree = {"q_0": np.zeros((6, 4)), "q_1": np.zeros((6, 4)), "u": np.zeros((6, 11))}
    plan = growth.head_addition(4, 2)(architecture)
    with pytest.raises(BlueprintError, match="q_0: the plan adds query heads to each group"):
        growth.expand(tree, plan, key=networks.KEY, blueprint=blueprint, init="copy")


def test_names_that_do_not_grow_may_be_anything():
    rules = [("e", "embedding", "1 length embed"), ("o", "attention_out", "(kv_heads group v out)")]
    tree = {"e": np.zeros((1, 5, 6), np.float32), "o": np.zeros(12 * 5, np.float32)}
    plan = growth.grow_to(embed_dim=8, v_dim=4)(ARCHITECTURE)
    grown = growth.expand(tree, plan, blueprint=Blueprint(rules), fresh={
        "e": np.zeros((1, 5, 8), np.float32), "o": np.zeros(16 * 5, np.float32)
    })  # fmt: skip
    assert jax.tree.map(jnp.shape, grown) == {"e": (1, 5, 8), "o": (80,)}
    with pytest.raises(BlueprintError, match=r"e: shape \(2, 5, 6\) does not fit .*\(1\) is 1"):
        Blueprint(rules).check(tree | {"e": np.zeros((2, 5, 6))}, ARCHITECTURE)
    with pytest.raises(BlueprintError, match=r"o: .* is 12 in the architecture, not 13"):
        Blueprint(rules).check(tree | {"o": np.zeros(13)}, ARCHITECTURE)


def test_fresh_values_of_another_vocabulary_are_refused():
    blueprint = Blueprint([("u", "unembed", "embed vocab")])
    plan = growth.hidden_dimension_expansion(8)(ARCHITECTURE)
    tree, fresh = {"u": np.zeros((6, 11))}, {"u": np.zeros((8, 12))}
    with pytest.raises(BlueprintError, match=r"u: the fresh array's shape \(8, 12\) differs"):
        growth.expand(tree, plan, blueprint=blueprint, fresh=fresh)


FUSED = [
    (("query", "key", "value"), "embed (role kv_heads group qk)", (6, 16 + 8 + 6)),
    (("query", "key", "value"), "(kv_heads role group qk) embed", (2 * (8 + 4 + 3), 6)),
    (("query", "key"), "(role kv_heads group qk)", (24,)),
    (("mlp_in", "mlp_in"), "layers embed role mlp", (2, 6, 2, 7)),
    (("mlp_in", "mlp_in"), "embed (role mlp copies)", (6, 42)),
]


@pytest.mark.parametrize("position", ["none", "rope"])
@pytest.mark.parametrize(("roles", "axes", "shape"), FUSED, ids=[axes for _, axes, _ in FUSED])
def test_an_array_splits_into_its_roles_and_joins_again(roles, axes, shape, position):
    architecture = ARCHITECTURE.replace(position=position)
    array = np.arange(np.prod(shape)).reshape(shape)
    (parameter,) = Blueprint([("w", roles, axes)]).parameters({"w": array}, architecture).values()
    layout = role_views.layout_of(parameter, architecture, shape)
    parts = layout.split(array)
    assert layout.shape == shape
    assert [part.shape for part in parts] == [view.shape for view in layout.views]
    assert sum(part.size for part in parts) == array.size
    joined = layout.join(parts, np.concatenate)
    np.testing.assert_array_equal(joined, array)


def test_views_of_grouped_heads_are_where_einops_would_put_them():
    array = np.arange(6 * 30).reshape(6, 30)
    rule = ("w", ("query", "key", "value"), "embed (role kv_heads group qk)")
    (parameter,) = Blueprint([rule]).parameters({"w": array}, ARCHITECTURE).values()
    query, key, value = role_views.layout_of(parameter, ARCHITECTURE, array.shape).split(array)
    np.testing.assert_array_equal(query, array[:, :16].reshape(6, 2, 2, 4))
    np.testing.assert_array_equal(key, array[:, 16:24].reshape(6, 2, 4))
    np.testing.assert_array_equal(value, array[:, 24:].reshape(6, 2, 3))


@pytest.mark.parametrize("name", networks.ARCHITECTURES)
def test_the_reference_blueprint_fits_an_architecture_and_all_it_can_grow_to(name):
    architecture = networks.ARCHITECTURES[name]
    target = networks.all_steps(architecture)(architecture).target
    for size in (architecture, target):
        tree, paths = networks.abstract_parameters(size)
        found = reference_blueprint(architecture).parameters(tree, size)
        assert sorted(found) == sorted(paths)
