"""Random compositions of the transformations preserve the function, in float64 to 1e-12.

Drawn at random: the architecture, the steps, the layers each acts on, the new sizes, where layers
are inserted, and where free values come from.
"""

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

import growth
from growth import Architecture
from tests.helpers import networks
from tests.helpers.networks import KEY, difference, random_parameters
from tests.helpers.numpy_transformer import logits

pytestmark = pytest.mark.usefixtures("float64")

_SIZES = dict(vocab_size=11, max_length=8, embed_dim=4, mlp_dim=5)
_FEW = dict(num_layers=1, num_heads=2, qk_dim=2)
_MORE = dict(num_layers=3, num_heads=2, qk_dim=4)
_GROUPED = dict(num_layers=2, num_heads=4, num_kv_heads=2, qk_dim=2, v_dim=3)
_UNEQUAL = dict(num_layers=2, num_heads=(2, 3), num_kv_heads=(1, 3), qk_dim=(4, 2), v_dim=(2, 3))

FAMILIES = {
    "paper": [
        Architecture.paper(**_SIZES, **shape, norm_eps=epsilon)
        for shape, epsilon in zip((_FEW, _MORE, _UNEQUAL), (1e-6, 1e-3, 1e-3), strict=True)
    ],
    "llama": [
        Architecture.llama(**_SIZES, **shape, tied_embeddings=tied, norm_eps=1e-3)
        for shape, tied in zip((_FEW, _GROUPED, _UNEQUAL), (True, True, False), strict=True)
    ],
    "gpt2": [Architecture.gpt2(**_SIZES, **shape) for shape in (_FEW, _MORE, _GROUPED)],
    "mixed": [
        Architecture(**_SIZES, **_GROUPED, norm="layernorm", final_norm=False, use_bias=True),
        Architecture(**_SIZES, **_UNEQUAL, gated_mlp=False, use_bias=True, causal=False),
        Architecture(**_SIZES, **_MORE, position="none", activation="gelu", use_bias=("key",)),
        Architecture(**_SIZES, **_FEW, tied_embeddings=True, final_norm=False, position="none"),
    ],
}
FAMILIES["variants"] = list(networks.VARIANTS.values())

# A tree of random values is the hardest source, since an initializer leaves much at zero or one; it
# is also the one that compiles fast.
INITS = ["tree"] * 10 + ["copy", "fresh", {"default": "copy", "mlp_expansion": "fresh"}]


@st.composite
def steps(draw, architecture):
    """A step that is possible from an architecture; it stays small."""
    kind = draw(st.sampled_from(["mlp", "heads", "v", "qk", "embed", "layers"]))
    number = architecture.num_layers
    if kind == "embed":
        return growth.hidden_dimension_expansion(architecture.embed_dim + draw(st.integers(1, 5)))
    if kind == "layers":
        count, position = draw(st.integers(1, 2)), draw(st.none() | st.integers(0, number))
        return growth.layer_addition(count if number + count <= 5 else 1, position)

    subsets = st.sets(st.integers(0, number - 1), min_size=1).map(lambda s: tuple(sorted(s)))
    layers = draw(st.none() | subsets)
    chosen = [architecture.layers[i] for i in (layers or range(number))]
    if kind == "heads":
        more_groups, more_queries = draw(st.sampled_from([(1, 0), (0, 1), (1, 1)]))
        groups = [shape.num_kv_heads + more_groups for shape in chosen]
        per_group = [shape.queries_per_group + more_queries for shape in chosen]
        heads = [g * r for g, r in zip(groups, per_group, strict=True)]
        return growth.head_addition(heads, groups if more_queries else None, layers)
    step, name, by = {
        "mlp": (growth.mlp_expansion, "mlp_dim", 1),
        "v": (growth.heads_expansion, "v_dim", 1),
        "qk": (growth.attention_expansion, "qk_dim", 2),
    }[kind]
    more = draw(st.lists(st.integers(0, 3), min_size=len(chosen), max_size=len(chosen)))
    sizes = [getattr(s, name) + by * m for s, m in zip(chosen, more, strict=True)]
    if draw(st.booleans()):  # one size for all
        return step(max(sizes), layers)
    return step(sizes, layers)


@st.composite
def growths(draw, family):
    """An architecture and one to five steps, each possible after those before it."""
    architecture = draw(st.sampled_from(FAMILIES[family]))
    number = draw(st.integers(1, 5))
    result, reached = [], architecture
    for _ in range(number):
        step = draw(steps(reached))
        try:
            reached = step(reached).target
        except growth.GrowthError as error:
            # Some steps are refused, not all, so that pytest.raises would be wrong.
            assert "cannot grow exactly" in str(error)  # noqa: PT017
            reject()
        result.append(step)
    return architecture, result


@functools.cache
def source(architecture):
    """Parameters of an architecture, and their logits."""
    parameters = random_parameters(architecture)
    return parameters, logits(architecture, parameters)


def expanded(parameters, plan, init):
    if init == "tree":
        return growth.expand(parameters, plan, fresh=random_parameters(plan.target, seed=1))
    return growth.expand(parameters, plan, key=KEY, init=init)


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
def test_random_compositions_preserve_the_function(family, data):
    architecture, chosen = data.draw(growths(family))
    init = data.draw(st.sampled_from(INITS))
    plan = growth.compose(*chosen)(architecture)

    parameters, old = source(architecture)
    grown = expanded(parameters, plan, init)
    assert difference(old, logits(plan.target, grown)) <= 1e-12
    networks.forget_programs(every=32)


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
def test_a_composition_is_the_plan_of_its_steps(family, data):
    architecture, chosen = data.draw(growths(family))
    whole = growth.compose(*chosen)(architecture)

    reached, origins = architecture, list(range(architecture.num_layers))
    for step in chosen:
        plan = step(reached)
        origins = [None if at is None else origins[at] for at in plan.layer_sources]
        reached = plan.target
    assert whole == growth.GrowthPlan(architecture, reached, tuple(origins))
    nested = growth.compose(chosen[0], growth.compose(*chosen[1:]))
    assert nested(architecture) == whole


def test_steps_one_by_one_preserve_the_function_too():
    architecture = FAMILIES["llama"][2]
    chosen = [
        growth.layer_addition(2, position=1),
        growth.attention_expansion((6, 4), layers=(0, 3)),
        growth.head_addition((2, 6), (1, 3), layers=(1, 3)),
        growth.hidden_dimension_expansion(7),
        growth.mlp_expansion(8, layers=(2,)),
        growth.heads_expansion(4),
    ]
    parameters, old = source(architecture)
    plan = growth.compose(*chosen)(architecture)
    fused = expanded(parameters, plan, "tree")
    assert difference(old, logits(plan.target, fused)) <= 1e-12

    reached = architecture
    for step in chosen:
        plan = step(reached)
        parameters, reached = expanded(parameters, plan, "tree"), plan.target
    assert difference(old, logits(reached, parameters)) <= 1e-12
    # What continues old entries is the same, too: it has one place, whatever the way to it.
    tables = [np.asarray(tree["embed"]["embedding"]) for tree in (fused, parameters)]
    np.testing.assert_array_equal(*tables)


@pytest.mark.full
@pytest.mark.parametrize("name", networks.ARCHITECTURES)
def test_every_pair_of_steps_preserves_the_function(name):
    architecture = networks.ARCHITECTURES[name]
    singles = networks.single_steps(architecture).values()
    parameters, old = source(architecture)
    for pair in itertools.permutations(singles, 2):
        try:
            plan = growth.compose(*pair)(architecture)
        except growth.GrowthError as error:
            # Some pairs are refused, not all, so that pytest.raises would be wrong.
            assert "cannot shrink" in str(error) or "sizes for" in str(error)  # noqa: PT017
            continue
        grown = expanded(parameters, plan, "tree")
        assert difference(old, logits(plan.target, grown)) <= 1e-12
        networks.forget_programs(every=32)
