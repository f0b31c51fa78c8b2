"""The certificate of a growth step: what it says of a good one, and of bad ones."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import growth
from growth import CertificateError, GrowthPlan
from growth.models import apply, residual_stream
from tests.helpers import foreign_models, networks
from tests.helpers.networks import ARCHITECTURES, KEY, random_parameters

TOKENS = np.random.default_rng(1).integers(0, 11, (8, 8))


@functools.cache
def example(name="llama"):
    """Float32 parameters, a plan along all six dimensions, and the grown parameters."""
    architecture = ARCHITECTURES[name]
    parameters = random_parameters(architecture, dtype=np.float32)
    plan = networks.all_steps(architecture)(architecture)
    return parameters, plan, growth.expand(parameters, plan, key=KEY)


@pytest.mark.parametrize("name", networks.first(ARCHITECTURES, "llama"))
def test_a_good_step_is_certified(name):
    parameters, plan, grown = example(name)
    certificate = growth.certify(
        parameters,
        plan,
        apply=apply,
        grown=grown,
        batch=TOKENS,
        residual_stream=residual_stream,
        tx=optax.adamw(1e-3, weight_decay=0.0),
        learning_rate=1e-3,
    )
    assert certificate.passed, certificate.problems
    certificate.require()
    assert certificate.preservation["float64"].max_error <= 1e-12
    assert 0 < certificate.preservation["float32"].max_error <= 1e-5
    assert 1e-4 < certificate.preservation["bfloat16"].max_error < 1
    assert certificate.preservation["float32"].agreement == 1
    assert len(certificate.drift) == plan.source.num_layers
    assert max(certificate.drift) <= 1e-12
    added = plan.target.num_parameters - plan.source.num_parameters
    assert sum(certificate.gradients.new.values()) == added
    assert certificate.first_update[1] == pytest.approx(1, abs=1e-3)  # Adam's first is its rate


def test_it_reads_well_and_goes_to_json():
    parameters, plan, grown = example()
    certificate = growth.certify(
        parameters, plan, apply=apply, grown=grown, batch=TOKENS, dtypes=["float64"]
    )
    text = str(certificate)
    assert "every promise is kept" in text
    assert f"{plan.source.num_parameters:,} → {plan.target.num_parameters:,}" in text
    values = json.loads(certificate.to_json())
    assert values["passed"] is True
    assert values["target"] == plan.target.to_dict()
    assert values["preservation"]["float64"]["max_error"] <= 1e-12


def broken(change, **options):
    """The problems that a certificate finds in parameters that someone has changed."""
    parameters, plan, grown = example()
    grown = jax.tree.map(jnp.array, grown)
    change(grown)
    certificate = growth.certify(
        parameters, plan, apply=apply, grown=grown, batch=TOKENS, **options
    )
    assert not certificate.passed
    with pytest.raises(CertificateError, match="growth is not certified"):
        certificate.require()
    return "\n".join(certificate.problems)


def test_parameters_that_growth_did_not_make_are_found():
    def change(grown):
        grown["final_norm"]["scale"] *= 1.01

    problems = broken(change)
    assert "the promise is 1e-05" in problems
    assert "the parameters are not what growth.expand makes of the source" in problems


def test_units_that_will_stay_equal_are_found():
    def change(grown):
        for name in ("up", "gate"):
            kernel = grown["layers_0"]["mlp"][name]["kernel"]
            grown["layers_0"]["mlp"][name]["kernel"] = kernel.at[..., 8].set(kernel[..., 7])

    problems = broken(change, dtypes=["float64"])
    assert "layer 0, mlp: 7 and 8 are equal and get equal gradients" in problems


def test_zeros_on_the_free_side_are_found():
    """Zero on both sides of a contraction: without gradient for ever."""

    def change(grown):
        for name in ("up", "gate"):
            kernel = grown["layers_0"]["mlp"][name]["kernel"]
            grown["layers_0"]["mlp"][name]["kernel"] = kernel.at[..., 7:].set(0)

    problems = broken(change, dtypes=["float64"])
    assert "layers_0/mlp/up/kernel: " in problems
    assert "new entries get no gradient" in problems
    assert "layers_0/mlp/down/kernel: " in problems


def test_the_layer_of_a_fault_is_named():
    parameters, plan, grown = example()

    def faulty(architecture, params, tokens):
        layers = residual_stream(architecture, params, tokens)
        return (
            layers if architecture == plan.source else [layers[0], *(x + 0.1 for x in layers[1:])]
        )

    certificate = growth.certify(
        parameters, plan, apply=apply, grown=grown, batch=TOKENS, residual_stream=faulty
    )
    assert certificate.problems[0].startswith("the stream moves in old layer 1, by")


def test_another_models_step_is_certified_through_its_blueprint():
    model = foreign_models.MODELS["plain Llama"]
    tree = model.init(model.architecture)
    plan = growth.grow_to(num_layers=3, mlp_dim=7, embed_dim=8)(model.architecture)
    grown = growth.expand(tree, plan, blueprint=model.blueprint, fresh=model.init(plan.target))
    certificate = growth.certify(
        tree,
        plan,
        apply=model.apply,
        grown=grown,
        batch=TOKENS,
        blueprint=model.blueprint,
        dtypes=["float64"],
    )
    assert certificate.preservation["float64"].max_error <= 1e-12
    assert not certificate.gradients.dead


def test_a_dtype_that_is_not_known_is_refused():
    parameters, plan, grown = example()
    with pytest.raises(growth.InputError, match="must be some of float64, float32, bfloat16"):
        growth.certify(parameters, plan, apply=apply, grown=grown, batch=TOKENS, dtypes=["float8"])


def test_nothing_grown_is_nothing_changed():
    parameters, plan, _ = example()
    still = GrowthPlan(plan.source, plan.source, tuple(range(plan.source.num_layers)))
    certificate = growth.certify(
        parameters, still, apply=apply, grown=parameters, batch=TOKENS, dtypes=["float64"]
    )
    assert certificate.passed
    assert certificate.preservation["float64"].max_error == 0
    assert not certificate.gradients.new
