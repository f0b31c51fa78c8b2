"""A certificate says why: the assumption that a model breaks is named, and rounding is no fault.

The models here are like other people's: a literal epsilon, norms in float32 inside.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import growth
from growth import Architecture
from tests.helpers.networks import TOKENS

SOURCE = Architecture(
    vocab_size=11,
    max_length=8,
    embed_dim=6,
    num_layers=1,
    num_heads=2,
    qk_dim=4,
    mlp_dim=5,
    norm_eps=1e-3,
)
BLUEPRINT = growth.Blueprint(
    [
        ("embed", "embedding", "vocab embed"),
        ("layers/{layers}/{part}_norm", "norm_gain", "embed"),
        ("layers/{layers}/query", "query", "embed kv_heads qk"),
        ("layers/{layers}/key", "key", "embed kv_heads qk"),
        ("layers/{layers}/value", "value", "embed kv_heads v"),
        ("layers/{layers}/attention_out", "attention_out", "kv_heads v embed"),
        ("layers/{layers}/gate", "mlp_in", "embed mlp"),
        ("layers/{layers}/up", "mlp_in", "embed mlp"),
        ("layers/{layers}/down", "mlp_out", "mlp embed"),
        ("norm", "final_gain", "embed"),
        ("head", "unembed", "embed vocab"),
    ]
)
WIDER = growth.hidden_dimension_expansion(9)


def init(arch, seed=0):
    random = np.random.default_rng(seed)
    h, p, e, k, v = arch.embed_dim, arch.mlp_dim, arch.num_heads, arch.qk_dim, arch.v_dim

    def array(*shape):
        return 0.6 * random.standard_normal(shape)

    def layer():
        return {
            "attention_norm": 1 + array(h),
            "mlp_norm": 1 + array(h),
            "query": array(h, e, k),
            "key": array(h, e, k),
            "value": array(h, e, v),
            "attention_out": array(e, v, h),
            "gate": array(h, p),
            "up": array(h, p),
            "down": array(p, h),
        }

    return {
        "embed": array(arch.vocab_size, h),
        "layers": [layer() for _ in range(arch.num_layers)],
        "norm": 1 + array(h),
        "head": array(h, arch.vocab_size),
    }


def model(arch, tree, tokens, *, eps=None, theta=None, scale=None, enlarge=1.0, inside=None):
    """A Llama; the keywords are what a model may have as a literal of its own."""

    def norm(x, gain):
        y = x.astype(inside or x.dtype)
        y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + (eps or arch.norm_eps))
        return y.astype(x.dtype) * gain

    def turned(x):
        half = x.shape[-1] // 2
        base = theta or arch.layers[0].rope_theta
        angles = jnp.arange(x.shape[1])[:, None, None] * base ** (-jnp.arange(half) / half)
        a, b = x[..., :half], x[..., half:]
        sin, cos = jnp.sin(angles).astype(x.dtype), jnp.cos(angles).astype(x.dtype)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    x = tree["embed"][tokens] * enlarge(arch) if callable(enlarge) else tree["embed"][tokens]
    for layer in tree["layers"]:
        y = norm(x, layer["attention_norm"])
        q, k, v = (jnp.einsum("bth,hek->btek", y, layer[n]) for n in ("query", "key", "value"))
        scores = jnp.einsum("bsek,btek->best", turned(q), turned(k))
        scores *= scale or q.shape[-1] ** -0.5
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
        mixed = jnp.einsum("best,btev->bsev", jax.nn.softmax(scores), v)
        x = x + jnp.einsum("bsev,evh->bsh", mixed, layer["attention_out"])
        y = norm(x, layer["mlp_norm"])
        x = x + (jax.nn.silu(y @ layer["gate"]) * (y @ layer["up"])) @ layer["down"]
    return norm(x, tree["norm"]) @ tree["head"]


def certificate(step, source=SOURCE, **literals):
    plan = step(source)
    params = jax.tree.map(np.float32, init(source))
    fresh = jax.tree.map(np.float32, init(plan.target, seed=1))
    return growth.certify(
        params,
        plan,
        grown=growth.expand(params, plan, blueprint=BLUEPRINT, fresh=fresh),
        apply=functools.partial(model, **literals),
        batch=TOKENS,
        blueprint=BLUEPRINT,
        dtypes=["float64"],
        check_gradients=False,
    )


def root_of_width(arch):
    return arch.embed_dim**0.5


LITERALS = {
    "epsilon": (WIDER, dict(eps=1e-3), "with fixed_norm_eps=True the function would stay"),
    "scale of attention": (
        growth.attention_expansion(8),
        dict(scale=0.5),
        "with query_scale=0.5 the function would stay",
    ),
    "scaled embedding": (
        WIDER,
        dict(enlarge=root_of_width),
        "with scaled_embedding=True the function would stay",
    ),
}


@pytest.mark.parametrize("name", LITERALS)
def test_the_assumption_that_a_model_breaks_is_named(name):
    step, literals, cause = LITERALS[name]
    found = certificate(step, **literals)
    assert not found.passed
    assert found.causes[0].startswith(cause)
    with pytest.raises(growth.CertificateError, match=f"likely: {cause}"):
        found.require()
    assert f"likely: {cause}" in str(found)
    assert found.to_dict()["causes"][0] == found.causes[0]


def test_a_rotary_base_that_does_not_follow_is_named():
    found = certificate(growth.compose(growth.attention_expansion(8), WIDER), theta=10000.0)
    assert any(cause.startswith("rope_theta of the architecture has no") for cause in found.causes)
    assert not any(cause.startswith("norm_eps") for cause in found.causes)
    assert "qk_dim alone moves them" in found.causes[-1]
    assert "what keeps them: embed_dim" in found.causes[-1]


def test_the_rounding_of_a_model_that_computes_in_float32_is_no_fault():
    found = certificate(WIDER, inside=np.float32)
    measured = found.preservation["float64"]
    assert measured.max_error > 1e-12  # beyond the promise
    assert 1e-9 < measured.rounding < 1e-5  # and no larger than the model's own
    assert found.passed, found.problems


def test_a_fault_among_rounding_is_a_fault():
    """An epsilon that does not follow moves logits by little, and still by more than rounding."""
    source = SOURCE.replace(norm_eps=1e-4)
    found = certificate(WIDER, source, inside=np.float32, eps=1e-4)
    assert not found.passed
    assert found.causes[0].startswith("with fixed_norm_eps=True")


def test_what_rounds_nowhere_has_the_rounding_of_its_dtype():
    assert 0 < certificate(WIDER).preservation["float64"].rounding < 1e-14
