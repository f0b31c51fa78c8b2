"""Which old layer a new one is like: what a plan says of it, and what it refuses."""

import json

import numpy as np
import pytest

import growth
from growth import Architecture, GrowthError, GrowthPlan
from tests.helpers import networks, numpy_transformer

SIZES = dict(vocab_size=11, max_length=8, embed_dim=6, num_layers=3, num_heads=2, norm_eps=1e-3)
LAYERS = Architecture.llama(**SIZES, qk_dim=4, mlp_dim=(5, 6, 7), window=(3, None, 3))


def test_a_new_layer_has_the_shape_of_the_layer_that_it_is_like():
    plan = growth.layer_addition(3, like=(0, 1, 2))(LAYERS)
    assert plan.layer_sources == (0, 1, 2, None, None, None)
    assert plan.layer_templates == (0, 1, 2, 0, 1, 2)
    assert plan.target.mlp_dim == (5, 6, 7, 5, 6, 7)
    assert plan.target.window == (3, None, 3, 3, None, 3)
    assert str(plan).endswith("new layers at 3, 4, 5 like 0, 1, 2")


def test_without_a_word_it_is_like_the_layer_below():
    for position, templates in ((0, (0, 0, 1, 2)), (2, (0, 1, 1, 2)), (3, (0, 1, 2, 2))):
        plan = growth.layer_addition(1, position)(LAYERS)
        assert plan.layer_templates == templates
        assert plan == GrowthPlan(LAYERS, plan.target, plan.layer_sources)
        assert "like" not in str(plan)
        below = templates[position]
        assert plan == growth.layer_addition(1, position, like=below)(LAYERS)


def test_one_plan_behind_another_is_like_what_the_first_is_like():
    step = growth.compose(
        growth.layer_addition(1, like=0),
        growth.mlp_expansion(9),
        growth.layer_addition(2, position=1, like=(3, 1)),
    )
    plan = step(LAYERS)
    assert plan.layer_sources == (0, None, None, 1, 2, None)
    assert plan.layer_templates == (0, 0, 1, 1, 2, 0)
    assert hash(plan) == hash(step(LAYERS))
    assert growth.layer_addition(2, like=[0, 1]) == growth.layer_addition(2, like=(0, 1))


def test_positions_are_turned_as_in_the_layer_that_a_new_one_is_like():
    source = LAYERS.replace(rope_theta=(100.0, 1e4, 1e4))
    target = growth.layer_addition(1, like=0)(source).target.replace(qk_dim=8)
    plan = growth.compose(growth.layer_addition(1, like=0), growth.attention_expansion(8))(source)
    assert plan.target.rope_theta == pytest.approx((1e4, 1e8, 1e8, 1e4))
    assert plan.target.replace(rope_theta=1.0) == target.replace(rope_theta=1.0)


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (3, "like names layer 3, but the layers are 0 to 2"),
        (-1, "like names layer -1"),
        ((0, 5), "like names layer 5"),
        (
            (0,),
            r"like is \(0,\), but it must be the index of a layer, or one for each of the 2 new",
        ),
        ((0, 1, 2), "one for each of the 2 new layers"),
        (True, "like is True"),
        ((0, True), "like names layer True"),
        (1.0, "like is 1.0"),
        ("01", "like is '01'"),
        ((0, None), "like names layer None"),
    ],
    ids=str,
)
def test_what_is_no_layer_is_refused(like, message):
    with pytest.raises(GrowthError, match=message):
        growth.layer_addition(2, like=like)(LAYERS)


@pytest.mark.parametrize(
    "templates", [(0, 1, 2), (0, 1, 2, 3), (0, 1, 2, -1), (1, 1, 2, 2), (0, 1, 2, 2, 2)], ids=str
)
def test_a_plan_whose_templates_are_not_of_its_layers_is_refused(templates):
    target = growth.layer_addition(1)(LAYERS).target
    with pytest.raises(GrowthError, match=r"layer_templates is .* must name a layer of the 3 old"):
        GrowthPlan(LAYERS, target, (0, 1, 2, None), templates)


def test_a_plan_of_plain_values_is_the_plan_again():
    plan = growth.layer_addition(2, position=1, like=(2, 0))(LAYERS)
    texts = json.dumps([plan.layer_sources, plan.layer_templates])
    assert GrowthPlan(plan.source, plan.target, *json.loads(texts)) == plan


PLACES = {
    f"{mlp_dim}, {like} at {position}": (mlp_dim, position, like)
    # Layers that are alike, that are in runs of two shapes, and that all differ.
    for mlp_dim in (5, (5, 5, 7), (5, 6, 7))
    for position, like in ((3, (0, 1, 2)), (1, (2, 2, 0)), (0, (2, 0, 1)))
}


@pytest.mark.parametrize("place", networks.first(PLACES, "(5, 5, 7), (2, 2, 0) at 1"))
def test_layers_of_the_reference_model_are_copies_of_what_they_are_like(place, float64):
    mlp_dim, position, like = PLACES[place]
    source = LAYERS.replace(mlp_dim=mlp_dim, window=None)
    step = growth.compose(
        growth.layer_addition(3, position, like=like), growth.hidden_dimension_expansion(8)
    )
    plan, params = step(source), networks.random_parameters(source)
    grown = growth.expand(params, plan, init="copy:1e12", key=networks.KEY)
    before, after = (
        numpy_transformer.logits(*pair) for pair in ((source, params), (plan.target, grown))
    )
    assert networks.difference(before, after) <= 1e-12
    old, new = networks.by_layer(params, source), networks.by_layer(grown, plan.target)
    for layer, template in enumerate(like, position):
        for name in ("mlp/up/kernel", "attention/query/kernel"):
            copied = new[layer, name][:6]
            np.testing.assert_allclose(copied, old[template, name], rtol=1e-9)
