"""A network whose result a learned query pools grows exactly, and what is not so is told."""

import functools

import jax
import numpy as np
import pytest

import growth
from tests.helpers import attention_pooling as pooling
from tests.helpers.networks import TOKENS, difference

pytestmark = pytest.mark.usefixtures("float64")

STEPS = {
    "mlp": growth.mlp_expansion(7),
    "heads": growth.head_addition(3),
    "v": growth.heads_expansion(6),
    "qk": growth.attention_expansion(5),
    "embed": growth.hidden_dimension_expansion(9),
    "layers": growth.layer_addition(1, position=1),
}


@functools.cache
def source(name):
    params = pooling.init(pooling.ARCHITECTURES[name])
    return params, np.asarray(pooling.apply(pooling.ARCHITECTURES[name], params, TOKENS))


@pytest.mark.parametrize("name", pooling.ARCHITECTURES)
def test_every_step_preserves_the_function(name):
    architecture, (params, old) = pooling.ARCHITECTURES[name], source(name)
    possible = {k: s for k, s in STEPS.items() if k != "qk" or architecture.qk_norm == "none"}
    for kind, step in (possible | {"all": growth.compose(*possible.values())}).items():
        plan = step(architecture)
        fresh = pooling.init(plan.target, seed=1)
        grown = growth.expand(params, plan, blueprint=pooling.BLUEPRINT, fresh=fresh)
        assert difference(old, pooling.apply(plan.target, grown, TOKENS)) <= 1e-12, kind


def test_a_blueprint_that_fits_and_is_wrong_is_told():
    """Nothing in names and shapes says how a parameter is used: only running the model does."""
    architecture, (params, _) = pooling.ARCHITECTURES["LayerNorm"], source("LayerNorm")
    pooling.WRONG.check(params, architecture)
    plan = STEPS["embed"](architecture)
    options = dict(
        apply=pooling.apply,
        batch=TOKENS,
        fresh=pooling.init(plan.target, seed=1),
        loss=functools.partial(pooling.loss, plan.target, TOKENS),
    )
    certificate = growth.grow(params, plan, blueprint=pooling.BLUEPRINT, **options).certificate
    assert certificate.passed
    assert set(certificate.gradients.dead) == set()
    with pytest.raises(growth.CertificateError, match="logits differ by"):
        growth.grow(params, plan, blueprint=pooling.WRONG, **options)


def test_a_probe_learns_in_its_new_dimensions():
    architecture, (params, _) = pooling.ARCHITECTURES["LayerNorm"], source("LayerNorm")
    plan = STEPS["embed"](architecture)
    fresh = pooling.init(plan.target, seed=1)
    grown = growth.expand(params, plan, blueprint=pooling.BLUEPRINT, fresh=fresh)
    gradient = jax.grad(functools.partial(pooling.loss, plan.target, TOKENS))(grown)
    assert (np.abs(gradient["pool"]["probe"])[architecture.embed_dim :] > 1e-9).all()
