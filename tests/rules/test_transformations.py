"""Transformations map an architecture to a plan, compose, and refuse what would not be exact."""

import dataclasses

import numpy as np
import pytest

import growth
from growth import Architecture, ArchitectureError, GrowthError, GrowthPlan
from growth.rules.growth_plan import spread
from tests.helpers.networks import ARCHITECTURES, single_steps

SIZES = dict(vocab_size=11, max_length=8, embed_dim=6, num_layers=3, num_heads=4, mlp_dim=7)
PAPER = Architecture.paper(**SIZES, qk_dim=3, v_dim=5)
LLAMA = Architecture.llama(**SIZES, num_kv_heads=2, qk_dim=4)


def changed(plan):
    return {name: new for name, (_, new) in plan.changes.items()}


@pytest.mark.parametrize(
    ("step", "changes"),
    [
        (growth.mlp_expansion(9), dict(mlp_dim=9)),
        (growth.mlp_expansion(9, layers=(0, 2)), dict(mlp_dim=(9, 7, 9))),
        (growth.mlp_expansion((8, 9), layers=(2, 0)), dict(mlp_dim=(9, 7, 8))),
        (growth.mlp_expansion([7, 8, 9]), dict(mlp_dim=(7, 8, 9))),
        (growth.heads_expansion(6), dict(v_dim=6)),
        (growth.heads_expansion(6, layers=(1,)), dict(v_dim=(5, 6, 5))),
        (growth.attention_expansion(4, layers=[1]), dict(qk_dim=(3, 4, 3))),
        (growth.hidden_dimension_expansion(9), dict(embed_dim=9, norm_eps=1e-6 * 6 / 9)),
        (growth.layer_addition(2), dict(num_layers=5)),
        (growth.head_addition(6), dict(num_heads=6, num_kv_heads=6)),
        (growth.head_addition(8, 4), dict(num_heads=8)),
        (growth.head_addition(12, 6), dict(num_heads=12, num_kv_heads=6)),
        (
            growth.head_addition((5, 6), layers=(0, 1)),
            dict(num_heads=(5, 6, 4), num_kv_heads=(5, 6, 4)),
        ),
        (growth.mlp_expansion(np.int64(9), layers=()), {}),
    ],
    ids=str,
)
def test_a_step_changes_its_own_fields_only(step, changes):
    plan = step(PAPER)
    assert plan.source == PAPER
    assert plan.target == PAPER.replace(**changes)
    assert changed(plan) == changes
    if not isinstance(step, growth.layer_addition):
        assert plan.layer_sources == (0, 1, 2)


def test_epsilon_shrinks_with_the_width_of_the_stream():
    assert growth.hidden_dimension_expansion(24)(PAPER).target.norm_eps == PAPER.norm_eps / 4


def test_the_rotary_base_grows_so_that_the_old_frequencies_stay():
    target = growth.attention_expansion(8, layers=(1,))(LLAMA).target
    assert target.rope_theta == (1e4, 1e8, 1e4)

    def frequencies(theta, qk):
        return theta ** -(np.arange(0, qk, 2) / qk)

    np.testing.assert_allclose(frequencies(1e8, 8)[:2], frequencies(1e4, 4), rtol=1e-15)
    assert growth.attention_expansion(8)(PAPER).target.rope_theta == PAPER.rope_theta  # no rotation


def test_layers_that_reach_a_width_in_different_steps_are_equal_again():
    for theta in (1e4, 5e5):
        source = LLAMA.replace(rope_theta=theta)
        apart = growth.compose(
            growth.attention_expansion(6, layers=(0,)),
            growth.attention_expansion(10, layers=(0, 1)),
        )(source).target
        assert len(apart.layer_runs) == 2
        target = growth.attention_expansion(16)(apart).target
        assert target.layer_runs == ((0, 3),)
        assert target.rope_theta == pytest.approx(theta**4, rel=1e-13)
        assert growth.plan(apart, apart.replace(qk_dim=16)).target == target


def test_heads_are_added_in_whole_groups_or_within_groups():
    whole = growth.head_addition(6)(LLAMA).target
    assert (whole.num_heads, whole.num_kv_heads) == (6, 3)
    within = growth.head_addition(6, 2)(LLAMA).target
    assert (within.num_heads, within.num_kv_heads) == (6, 2)
    both = growth.head_addition(9, 3)(LLAMA).target
    assert (both.num_heads, both.num_kv_heads) == (9, 3)


@pytest.mark.parametrize(
    ("position", "sources", "mlp"),
    [
        (0, (None, None, 0, 1, 2), (7, 7, 7, 8, 9)),
        (1, (0, None, None, 1, 2), (7, 7, 7, 8, 9)),
        (2, (0, 1, None, None, 2), (7, 8, 8, 8, 9)),
        (3, (0, 1, 2, None, None), (7, 8, 9, 9, 9)),
        (None, (0, 1, 2, None, None), (7, 8, 9, 9, 9)),
    ],
)
def test_layers_are_inserted_anywhere_in_the_shape_of_the_one_below(position, sources, mlp):
    plan = growth.layer_addition(2, position)(PAPER.replace(mlp_dim=(7, 8, 9)))
    assert plan.layer_sources == sources
    assert plan.target.mlp_dim == mlp


def test_transformations_are_values():
    for step in (growth.mlp_expansion(9, layers=[0]), growth.compose(growth.layer_addition(1))):
        assert step == dataclasses.replace(step)
        assert hash(step) == hash(dataclasses.replace(step))
        with pytest.raises(dataclasses.FrozenInstanceError):
            step.layers = None
    assert growth.mlp_expansion(9) != growth.heads_expansion(9)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_compose_is_one_step_after_the_other(name):
    architecture = ARCHITECTURES[name]
    for step in single_steps(architecture).values():
        first = growth.layer_addition(1, position=0)(architecture)
        second = growth.mlp_expansion(20)(first.target)
        composed = growth.compose(growth.layer_addition(1, position=0), growth.mlp_expansion(20))
        assert composed(architecture) == first.followed_by(second)
        assert growth.compose(step)(architecture) == step(architecture)
    assert growth.compose()(architecture).changes == {}


def test_indices_in_a_composition_count_layers_that_earlier_steps_inserted():
    plan = growth.compose(
        growth.layer_addition(1, position=0),
        growth.mlp_expansion(9, layers=(0,)),
        growth.layer_addition(1, position=2),
    )(PAPER)
    assert plan.layer_sources == (None, 0, None, 1, 2)
    assert plan.target.mlp_dim == (9, 7, 7, 7, 7)


def test_plans_are_values():
    plan = growth.layer_addition(1)(PAPER)
    same = GrowthPlan(plan.source, plan.target, [0, 1, 2, None])
    assert same == plan
    assert hash(same) == hash(plan)


def test_plans_follow_each_other_where_one_ends_and_the_other_starts():
    one, other = growth.mlp_expansion(9)(PAPER), growth.layer_addition(1)(PAPER)
    with pytest.raises(GrowthError, match="cannot follow"):
        one.followed_by(other)


def test_grow_to_takes_all_the_steps_at_once():
    plan = growth.grow_to(num_layers=5, position=1, embed_dim=9, num_heads=6, mlp_dim=9)(LLAMA)
    assert plan.layer_sources == (0, None, None, 1, 2)
    assert (plan.target.num_heads, plan.target.num_kv_heads) == (6, 3)
    per_layer = growth.grow_to(num_layers=4, qk_dim=(4, 6, 8, 8), v_dim=5)(LLAMA)
    assert per_layer.target.qk_dim == (4, 6, 8, 8)
    assert per_layer.layer_sources == (0, 1, 2, None)
    assert growth.grow_to()(LLAMA).changes == {}
    with pytest.raises(GrowthError, match="position is 1, but num_layers is not given"):
        growth.grow_to(position=1)(LLAMA)
    with pytest.raises(GrowthError, match="num_layers is 3 and cannot become 2"):
        growth.grow_to(num_layers=2)(LLAMA)
    with pytest.raises(GrowthError, match="num_kv_heads is 4, but num_heads is not given"):
        growth.grow_to(num_kv_heads=4)(LLAMA)


@pytest.mark.parametrize(("old", "new"), [(1, 1), (1, 4), (2, 3), (3, 5), (4, 12), (5, 7)])
def test_new_layers_are_spread_evenly(old, new):
    origins = spread(old, new)
    assert [i for i in origins if i is not None] == list(range(old))
    places = [at for at, origin in enumerate(origins) if origin is not None]
    assert places[0] == 0
    gaps = np.diff([*places, new])
    assert gaps.max() - gaps.min() <= 1


def test_plan_finds_the_way_between_two_architectures():
    target = LLAMA.replace(
        num_layers=5, embed_dim=12, num_heads=8, num_kv_heads=4, qk_dim=8, v_dim=6, mlp_dim=9
    )
    plan = growth.plan(LLAMA, target)
    assert plan.layer_sources == (0, 1, None, 2, None)
    assert plan.target == target.replace(norm_eps=LLAMA.norm_eps / 2, rope_theta=1e8)
    assert growth.plan(LLAMA, plan.target) == plan  # whoever gives the right values gets the same

    assert growth.plan(LLAMA, target, position=1).layer_sources == (0, None, None, 1, 2)
    assert growth.plan(LLAMA, target, position=(3, 0)).layer_sources == (None, 0, 1, 2, None)
    assert growth.plan(LLAMA, LLAMA).layer_sources == (0, 1, 2)


def test_a_plan_says_what_it_does():
    plan = growth.compose(growth.mlp_expansion(9), growth.layer_addition(1, 0))(PAPER)
    assert str(plan) == "mlp_dim 7 → 9; num_layers 3 → 4; new layers at 0"
    assert str(growth.plan(PAPER, PAPER)) == "nothing changes"


REFUSED = [
    (growth.mlp_expansion(5), PAPER, GrowthError, "mlp_dim is 7 in layer 0 and cannot shrink to 5"),
    (growth.heads_expansion(4, layers=(1,)), PAPER, GrowthError, "v_dim is 5 in layer 1"),
    (growth.attention_expansion(2), PAPER, GrowthError, "qk_dim is 3 in layer 0"),
    (growth.head_addition(3), PAPER, GrowthError, "num_heads is 4 in layer 0"),
    (growth.hidden_dimension_expansion(5), PAPER, GrowthError, "embed_dim is 6 and cannot shrink"),
    (growth.mlp_expansion(0), PAPER, ArchitectureError, r"mlp_dim\[0\] is 0"),
    (growth.mlp_expansion(8.0), PAPER, GrowthError, "mlp_dim is 8.0, but it must be a whole"),
    (growth.mlp_expansion(None), PAPER, GrowthError, "mlp_dim is None"),
    (growth.heads_expansion(True), PAPER, GrowthError, "v_dim is True"),
    (growth.attention_expansion("8"), LLAMA, GrowthError, "qk_dim is '8', but it must be a whole"),
    (growth.head_addition("8"), PAPER, GrowthError, "num_heads is '8'"),
    (growth.head_addition(8, 0), PAPER, ArchitectureError, r"num_kv_heads\[0\] is 0"),
    (growth.hidden_dimension_expansion(8.0), PAPER, ArchitectureError, "embed_dim is 8.0"),
    (growth.attention_expansion(5), LLAMA, ArchitectureError, "qk_dim is 5 in layer 0, but rotary"),
    (growth.attention_expansion(4096), LLAMA, GrowthError, "rope_theta would become"),
    (growth.mlp_expansion((8, 9)), PAPER, GrowthError, "mlp_dim has 2 sizes for 3 layers"),
    (growth.mlp_expansion((8, 9), layers=(0,)), PAPER, GrowthError, "2 sizes for 1 layers"),
    (growth.head_addition((8, 9)), PAPER, GrowthError, "num_heads has 2 sizes for 3 layers"),
    (growth.mlp_expansion(9, layers=(3,)), PAPER, GrowthError, "layer 3, but the layers are 0 to"),
    (growth.mlp_expansion(9, layers=(-1,)), PAPER, GrowthError, "layer -1, but the layers"),
    (growth.mlp_expansion(9, layers=1), PAPER, GrowthError, "layers is 1, but it must be a seq"),
    (growth.mlp_expansion(9, layers=(1, 1)), PAPER, GrowthError, r"layers is \(1, 1\)"),
    (growth.head_addition(5), LLAMA, GrowthError, "num_heads cannot become 5 in layer 0: a group"),
    (growth.head_addition(5, 2), LLAMA, ArchitectureError, "num_kv_heads must divide num_heads"),
    (growth.head_addition(4, 4), LLAMA, GrowthError, "another group's keys"),
    (growth.layer_addition(0), PAPER, GrowthError, "count is 0"),
    (growth.layer_addition(1.0), PAPER, GrowthError, "count is 1.0"),
    (growth.layer_addition(1, 4), PAPER, GrowthError, "position is 4, but layers can be inserted"),
    (growth.layer_addition(1, -1), PAPER, GrowthError, "position is -1"),
    (growth.layer_addition(1, "top"), PAPER, GrowthError, "position is 'top', not a whole number"),
]


@pytest.mark.parametrize(
    ("step", "architecture", "error", "message"), REFUSED, ids=[str(r[0]) for r in REFUSED]
)
def test_what_is_impossible_is_refused(step, architecture, error, message):
    with pytest.raises(error, match=message):
        step(architecture)
    with pytest.raises(error, match=message):
        growth.compose(growth.compose(), step)(architecture)


def test_the_stream_cannot_widen_where_a_reader_would_see_the_mean():
    """LayerNorm fills with the mean; the embedding as the output layer would read it."""
    architecture = Architecture.gpt2(**SIZES, final_norm=False)
    with pytest.raises(
        GrowthError, match=r"embed_dim cannot grow exactly .*: with layernorm, tied"
    ):
        growth.hidden_dimension_expansion(8)(architecture)
    growth.mlp_expansion(9)(architecture)  # all else can grow
    for fields in (dict(tied_embeddings=False), dict(final_norm=True), dict(norm="rmsnorm")):
        growth.hidden_dimension_expansion(8)(architecture.replace(**fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(vocab_size=12), "vocab_size is 11 and growth cannot change it to 12"),
        (dict(max_length=9), "max_length is 8"),
        (dict(norm="layernorm"), "norm is 'rmsnorm'"),
        (dict(position="none"), "position is 'rope'"),
        (dict(activation="relu"), "activation is 'silu'"),
        (dict(gated_mlp=False), "gated_mlp is True"),
        (dict(tied_embeddings=True), "tied_embeddings is False"),
        (dict(use_bias=True), "use_bias is False"),
        (dict(final_norm=False), "final_norm is True"),
        (dict(causal=False), "causal is True"),
        (dict(norm_eps=1e-3), "norm_eps must become 1e-05 to preserve"),
        (dict(rope_theta=5.0), "rope_theta must become 10000.0 in layer 0"),
        (dict(qk_dim=8, rope_theta=5.0), "rope_theta must become 100000000.0 in layer 0"),
        (dict(embed_dim=5), "embed_dim is 6 and cannot shrink to 5"),
        (dict(num_layers=2), "num_layers is 3 and cannot shrink to 2"),
        (dict(num_heads=6, num_kv_heads=6), "another group's keys"),
    ],
    ids=str,
)
def test_plan_refuses_what_is_not_growth(fields, message):
    with pytest.raises(GrowthError, match=message):
        growth.plan(LLAMA, LLAMA.replace(**fields))


def test_plan_refuses_places_that_are_not_there():
    target = LLAMA.replace(num_layers=5)
    for position, message in ((4, "position is 4"), ((0, -1), "position is -1")):
        with pytest.raises(GrowthError, match=message):
            growth.plan(LLAMA, target, position=position)
    with pytest.raises(GrowthError, match="names 3 places for the 2 new layers"):
        growth.plan(LLAMA, target, position=(0, 1, 2))
    for sources in ((0, 1), (0, 2, 1), (0, 1, None)):
        with pytest.raises(GrowthError, match="every old layer must stand once"):
            GrowthPlan(LLAMA, LLAMA, sources)
