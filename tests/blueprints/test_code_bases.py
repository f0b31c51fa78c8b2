"""Public code bases: each grows exactly by a blueprint by hand, and what is guessed is right."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import growth
from growth import BlueprintError
from growth.certification import trainability
from tests.helpers import networks
from tests.helpers.code_bases import CODE_BASES, measures

pytestmark = pytest.mark.usefixtures("float64")

PAGE = Path(__file__).parents[2] / "docs" / "code_bases.md"

# Steps that are refused; all others are exact.
REFUSED = {"midGPT": {"qk"}, "Tunix's Qwen 3": {"qk"}, "transformers' DINOv2": {"embed"}}

# Of how many kinds names and shapes decide what they are, where they don't of all.
OPEN = {
    "midGPT": (7, 8),  # whether heads or roles come first in a kernel of all three
    "Grok-1": (10, 14),  # which norms stand before a branch, and which behind it
    "T5X": (26, 28),  # which of the last norms is that of the output layer
    "searchless chess": (4, 39),  # which number in a row is what
}


@pytest.mark.parametrize("name", CODE_BASES)
def test_every_step_of_every_code_base_is_exact_or_refused(name):
    found = measures.errors(CODE_BASES[name])
    assert {step for step, cell in found.items() if isinstance(cell, str)} == REFUSED.get(
        name, set()
    )
    assert len(found) == 7
    assert max(cell for cell in found.values() if not isinstance(cell, str)) <= measures.PROMISE


@pytest.mark.parametrize("name", networks.first(CODE_BASES, "Levanter's GPT-2", "llama-2-jax"))
def test_containers_of_every_kind_grow(name):
    """What numpy makes is what the front door makes, in the containers of the larger model."""
    model = CODE_BASES[name]
    plan = measures.plans(model)["all"]
    tree, fresh = model.random(model.architecture, 0), model.random(plan.target, 1)
    grown = growth.expand(tree, plan, blueprint=model.blueprint, fresh=fresh)
    assert jax.tree.structure(grown) == jax.tree.structure(fresh)
    networks.assert_same_trees(
        jax.tree.map(np.asarray, grown), measures.expand(tree, plan, model.blueprint, fresh)
    )


@pytest.mark.parametrize("name", CODE_BASES)
def test_what_is_guessed_without_help_is_right_and_the_rest_is_open(name):
    found = measures.inference(CODE_BASES[name])
    assert found.wrong == ()
    kinds = (found.kinds, found.kinds)
    assert (found.decided, found.kinds) == OPEN.get(name, kinds)
    assert bool(found.left_open) == (name in OPEN)


@pytest.mark.parametrize("name", networks.first(CODE_BASES, "midGPT"))
def test_what_is_guessed_with_the_function_is_right(name):
    found = measures.inference(CODE_BASES[name], try_out=True)
    assert found.wrong == ()
    assert bool(found.left_open) == (name == "searchless chess")


# Empty nodes and a bias of keys in a fused array; experts that no token chooses.
@pytest.mark.parametrize("name", networks.first(CODE_BASES, "Levanter's GPT-2"))
def test_the_door_opens_for_what_is_right(name):
    model = CODE_BASES[name]
    plan = measures.plans(model)["heads"]
    tree, fresh = (
        jax.tree.map(jnp.asarray, model.random(size, seed))
        for seed, size in enumerate((model.architecture, plan.target))
    )

    def loss(params):
        logits = model.apply(plan.target, params, jnp.asarray(model.inputs))
        return -jax.nn.log_softmax(logits)[..., 0].mean()

    certificate = growth.certify(
        tree, plan, grown=growth.expand(tree, plan, blueprint=model.blueprint, fresh=fresh),
        apply=model.apply, batch=model.inputs, blueprint=model.blueprint, loss=loss,
        dtypes=("float64",),
    )  # fmt: skip
    certificate.require()


def test_what_no_input_reaches_is_not_dead():
    """Experts that are not chosen, and tokens that are not there; but not an array as a whole."""
    alive = np.ones((4, 3, 2), bool)
    alive[1], alive[2, 0] = False, False
    dims = (("experts",), ("embed",), ("mlp",))
    reached = trainability.reached(alive, dims)
    assert reached.all(axis=(1, 2)).tolist() == [True, False, True, True]
    assert trainability.reached(np.zeros((4, 3, 2), bool), dims).all()
    grows = (("kv_heads",), ("embed",), ("qk",))
    assert trainability.reached(alive, grows).all()


def test_a_role_outside_of_layers_is_refused_where_layers_are_added():
    model = CODE_BASES["nanodo"]
    rules = [("blocks_{layers}/LayerNorm_0/scale", "final_gain", "embed")]
    rules += [("blocks_{layers}/LayerNorm_1/scale", "norm_gain", "embed")]
    rules += [rule for rule in model.blueprint.rules if "LayerNorm" not in rule[0]]
    plans, tree = measures.plans(model), model.random(model.architecture, 0)
    for step in ("mlp", "layers"):
        fresh = model.random(plans[step].target, 1)
        expand = dict(blueprint=growth.Blueprint(rules), fresh=fresh)
        if step == "layers":
            with pytest.raises(
                BlueprintError, match="'final_gain', which stands outside of layers"
            ):
                growth.expand(tree, plans[step], **expand)
        else:
            growth.expand(tree, plans[step], **expand)


def test_the_page_has_a_row_for_each():
    table = PAGE.read_text().partition("## Why")[0]
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^\n]+) \|$", table, re.MULTILINE))
    for name, model in CODE_BASES.items():
        system, lines, *cells, guessed, _ = rows[name].split(" | ")
        assert system == model.system
        assert int(lines) == len(model.blueprint.rules)
        assert all(float(cell) <= measures.PROMISE for cell in cells if "refused" not in cell)
        assert sum("refused" in cell for cell in cells) == len(REFUSED.get(name, ()))
        decided = "right" if name not in OPEN else "open, {} of {}".format(*OPEN[name])
        assert guessed == decided
