"""Break what growth knows, entry by entry: the certificate must catch every mutant.

Mutants are made from the rules table itself, so that a new rule has its mutants without a word
here. One that computes the same after all stands in `SAME` with the reason, and that is checked.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import growth
from growth import Architecture
from growth.certification import certification as certifying
from growth.expansion import accounts
from growth.expansion import parameters as expanding
from growth.models import apply, blueprint
from growth.rules import roles
from growth.rules.roles import FREE, RESIDUAL, ROLES, ZERO
from tests.helpers import attention_pooling, units_beside
from tests.helpers.networks import random_parameters

TOKENS = np.random.default_rng(1).integers(0, 11, (4, 8))

_SIZES = dict(vocab_size=11, max_length=8, embed_dim=6, num_layers=1, mlp_dim=5, norm_eps=1e-3)
_HEADS = dict(num_heads=4, num_kv_heads=2, qk_dim=4, v_dim=3)
_GEMMA = dict(unit_offset=True, scaled_embedding=True, tied_embeddings=True)

# Architectures in which every rule has its effect in one of them.
JUDGES = {
    "llama": Architecture.llama(**_SIZES, **_HEADS, position="rope"),
    "gpt2": Architecture.gpt2(**_SIZES, **_HEADS),
    "paper": Architecture.paper(**_SIZES, **_HEADS),
    "gemma": Architecture(**_SIZES, **_HEADS, **_GEMMA, norm_placement="sandwich"),
    "olmo": Architecture(**_SIZES, **_HEADS, norm="layernorm", norm_gain=False),
    "qwen": Architecture(**_SIZES, **_HEADS, qk_norm="head", use_bias=("query", "key")),
    "sandwich": Architecture(
        **_SIZES, **_HEADS, norm="layernorm", norm_placement="sandwich", use_bias=True
    ),
    "scaled embedding": Architecture.gpt2(**_SIZES, **_HEADS, scaled_embedding=True),
    "opt": Architecture.gpt2(**_SIZES, **_HEADS, fixed_norm_eps=True),
    "fixed epsilon": Architecture(**_SIZES, **_HEADS, fixed_norm_eps=True, final_norm=False),
    "no final norm": Architecture(**_SIZES, **_HEADS, norm="layernorm", final_norm=False),
    "scaled logits": Architecture(
        **_SIZES,
        **_HEADS,
        norm="layernorm",
        use_bias=("norm",),
        tied_embeddings=True,
        scaled_logits=True,
    ),
    "scaled logits, no gains": Architecture(
        **_SIZES, **_HEADS, norm_gain=False, scaled_logits=True
    ),
    "fixed epsilon, closing norms": Architecture(
        **_SIZES, **_HEADS, fixed_norm_eps=True, norm_placement="closing", use_bias=True
    ),
}
# Models of their own, for roles and axes that the reference model has no use for.
OWN = {
    f"{kind}, {name}": (module, architecture)
    for kind, module in {"pooled": attention_pooling, "units beside": units_beside}.items()
    for name, architecture in module.ARCHITECTURES.items()
}
JUDGES |= {name: architecture for name, (_, architecture) in OWN.items()}

# (role, what is mutated): why the function stays the same.
SAME = {
    # The reference model's RMSNorms have no bias.
    ("closing_bias", "embed"): "the stream cannot widen where a layernorm writes to it",
    ("closing_bias", "scale 0"): "the stream cannot widen where a layernorm writes to it",
    ("router", "scale 0"): "the reference model has no experts; Mixtral's has gains",
}


@functools.cache
def grown(name):
    """A plan along all dimensions that can grow, the parameters, and free values."""
    architecture = JUDGES[name]
    if name in OWN:
        model, _ = OWN[name]
        plan = model.step(architecture)
        return plan, model.init(architecture), model.init(plan.target, seed=1)
    steps = [
        growth.mlp_expansion(7),
        growth.head_addition(9, 3),
        growth.heads_expansion(5),
        growth.layer_addition(1),
    ]
    if architecture.qk_norm == "none":
        steps.append(growth.attention_expansion(6))
    if name != "sandwich":
        steps.append(growth.hidden_dimension_expansion(8))
    plan = growth.compose(*steps)(architecture)
    return plan, random_parameters(architecture), random_parameters(plan.target, seed=1)


def forget():
    """What was made of the rules is made anew."""
    accounts._source_account.cache_clear()
    accounts._target_accounts.cache_clear()
    expanding._expand.clear_cache()


def with_fill(role, axis, fill):
    """A rule with another value of new entries along an axis."""
    return dataclasses.replace(ROLES[role], fills={**ROLES[role].fills, axis: fill})


def problems(name, plan=None, fresh=None, check_gradients=False):
    """What the certificate says of growth as it is now, mutated or not."""
    right, parameters, values = grown(name)
    plan, fresh = plan or right, fresh or values
    forget()
    rules, logits, loss = None, apply, None
    if name in OWN:
        model, _ = OWN[name]
        rules, logits = model.BLUEPRINT, model.apply
        loss = functools.partial(model.loss, plan.target, TOKENS)
    with jax.enable_x64(True):
        made = growth.expand(parameters, plan, fresh=fresh, blueprint=rules)
    certificate = growth.certify(
        parameters,
        plan,
        apply=logits,
        blueprint=rules,
        loss=loss,
        grown=made,
        batch=TOKENS,
        dtypes=["float64"],
        check_gradients=check_gradients,
        explain=False,
    )
    return certificate.problems


@pytest.fixture(autouse=True)
def forget_mutants():
    yield
    forget()


@pytest.mark.parametrize("name", JUDGES)
def test_what_is_not_mutated_is_certified(name):
    assert problems(name, check_gradients=True) == ()


FIXED = [
    (role, axis)
    for role, rule in ROLES.items()
    for axis, fill in rule.fills.items()
    if fill in (ZERO, RESIDUAL)
]
SCALES = [(role, number) for role, rule in ROLES.items() for number in range(len(rule.scales))]


def blocks(name):
    """What growth says of every entry of a judge, mutated or not."""
    plan, parameters, _ = grown(name)
    rules = OWN[name][0].BLUEPRINT if name in OWN else blueprint(plan.source)
    return [array.blocks for array in accounts.source_account(parameters, plan, rules)]


@pytest.fixture(scope="module")
def right_blocks():
    return {name: blocks(name) for name in JUDGES}


def caught(right_blocks):
    """Whether the certificate finds the mutant where it changes anything at all."""
    forget()
    changed = [name for name in JUDGES if blocks(name) != right_blocks[name]]
    return any(problems(name) for name in changed)


@pytest.mark.parametrize(("role", "axis"), FIXED)
def test_a_fixed_value_that_is_free_is_caught(role, axis, right_blocks, monkeypatch):
    monkeypatch.setitem(ROLES, role, with_fill(role, axis, FREE))
    assert caught(right_blocks) != ((role, axis) in SAME)


@pytest.mark.parametrize(("role", "number"), SCALES)
def test_a_scale_that_is_dropped_is_caught(role, number, right_blocks, monkeypatch):
    scales = ROLES[role].scales[:number] + ROLES[role].scales[number + 1 :]
    monkeypatch.setitem(ROLES, role, dataclasses.replace(ROLES[role], scales=scales))
    assert caught(right_blocks) != ((role, f"scale {number}") in SAME)


@pytest.mark.parametrize(
    "role", [r for r, rule in ROLES.items() if RESIDUAL in rule.fills.values()]
)
def test_a_mean_that_is_zero_is_caught(role, monkeypatch):
    monkeypatch.setitem(ROLES, role, with_fill(role, "embed", ZERO))
    assert problems("gpt2")


def test_an_output_layer_that_sees_the_mean_is_caught(monkeypatch):
    real = roles.fill

    def mutant(role, *rest):
        return FREE if role == "unembed" else real(role, *rest)

    monkeypatch.setattr(roles, "fill", mutant)
    assert problems("no final norm")


def test_gains_whose_offset_is_forgotten_are_caught(monkeypatch):
    monkeypatch.setattr(roles, "offset", lambda role, architecture: 0.0)
    assert problems("gemma")


def with_target(plan, **fields):
    """A plan to another target, which no plan that is built can have."""
    mutant = dataclasses.replace(plan)
    object.__setattr__(mutant, "target", plan.target.replace(**fields))
    return mutant


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_an_epsilon_that_is_not_scaled_is_caught(name):
    plan = grown(name)[0]
    assert problems(name, with_target(plan, norm_eps=plan.source.norm_eps))


def test_a_rotary_base_that_is_not_scaled_is_caught():
    plan = grown("llama")[0]
    assert problems("llama", with_target(plan, rope_theta=plan.source.rope_theta))


def test_rotary_columns_at_the_end_of_the_head_are_caught(monkeypatch):
    grown("llama")  # the plan is right
    monkeypatch.setattr(Architecture, "turns_halves", False)
    assert problems("llama")


def test_heads_that_are_appended_across_groups_are_caught(monkeypatch):
    """Two groups of two become two of three, and the new heads come after all old ones."""
    real = growth.expand

    def across(tree, plan, *args, **options):
        made = real(tree, plan, *args, **options)
        attention = made["layers_0"]["attention"]
        kv, group = plan.target.num_kv_heads, plan.target.layers[0].queries_per_group
        old_kv, old_group = plan.source.num_kv_heads, plan.source.layers[0].queries_per_group
        old = [g * group + r for g in range(old_kv) for r in range(old_group)]
        order = np.array(old + [e for e in range(kv * group) if e not in old])
        for name, axis in (("query", 2), ("out", 1)):
            kernel = attention[name]["kernel"]
            shape = kernel.shape
            flat = kernel.reshape(*shape[:axis], kv * group, *shape[axis + 2 :])
            attention[name]["kernel"] = flat.take(order, axis=axis).reshape(shape)
        return made

    monkeypatch.setattr(certifying, "expand", across)
    assert problems("llama")


@pytest.mark.parametrize(
    ("role", "axis", "step"),
    [
        ("query", "qk", growth.attention_expansion(6)),
        ("value", "v", growth.heads_expansion(5)),
        ("mlp_in", "mlp", growth.mlp_expansion(7)),
        ("value", "layers", growth.layer_addition(1)),
    ],
)
def test_a_free_value_that_is_zero_is_caught(role, axis, step, monkeypatch):
    """Zero on both sides of a contraction is dead for ever."""
    plan = step(JUDGES["llama"])
    fresh = random_parameters(plan.target, seed=1)
    assert problems("llama", plan, fresh, check_gradients=True) == ()
    monkeypatch.setitem(ROLES, role, with_fill(role, axis, ZERO))
    found = problems("llama", plan, fresh, check_gradients=True)
    assert any("new entries get no gradient" in problem for problem in found)
