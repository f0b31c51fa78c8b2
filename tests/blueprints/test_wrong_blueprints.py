"""A blueprint in which one thing is wrong is refused, or exact all the same, or caught."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import pytest

import growth
from tests.helpers import foreign_models, foreign_stacks, networks
from tests.helpers import wrong_blueprints as wrong
from tests.helpers.code_bases import CODE_BASES

pytestmark = pytest.mark.usefixtures("float64")

MODELS = CODE_BASES | foreign_models.MODELS | foreign_stacks.MODELS
SAMPLE = ("nanodo", "DeepMind's Gemma")


@functools.cache
def subject(name):
    return wrong.Subject(MODELS[name])


@pytest.mark.parametrize(
    ("name", "every"),
    [(name, 11) for name in SAMPLE]
    + [pytest.param(name, 1, marks=pytest.mark.full) for name in MODELS],
)
def test_nothing_is_wrong_without_a_word(name, every):
    cases = list(wrong.mutants(subject(name).blueprint))[::every]
    outcomes = collections.defaultdict(list)
    for mutant in cases:
        result, where = wrong.outcome(subject(name), mutant)
        outcomes[result].append((*mutant.written, mutant.change, where))
    assert outcomes[wrong.SILENT] == []
    assert len(outcomes[wrong.REFUSED]) + len(outcomes[wrong.UNPARSED]) > len(cases) / 2
    assert outcomes[wrong.CAUGHT]


def test_the_door_catches_what_is_not_exact():
    """What is counted as caught is refused by `growth.grow`, with what is broken."""
    here = subject("nanodo")
    (mutant,) = (
        mutant for mutant in wrong.mutants(here.blueprint) if mutant.change == "final_gain → mlp_in"
    )
    blueprint = mutant.blueprint(here.blueprint)
    assert wrong.outcome_of_step(here, "embed", blueprint) == wrong.CAUGHT
    tree, fresh = (jax.tree.map(jnp.asarray, tree) for tree in (here.tree, here.fresh["embed"]))
    with pytest.raises(growth.CertificateError, match=re.escape("logits differ by")):
        growth.grow(
            tree, here.plans["embed"], apply=here.apply, batch=networks.TOKENS, fresh=fresh,
            blueprint=blueprint, check_gradients=False,
        )  # fmt: skip
