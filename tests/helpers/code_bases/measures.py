"""What is measured of code bases: the error of each step, and how far a blueprint is guessed."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

import growth
from growth import Architecture, Blueprint, BlueprintError
from growth.blueprints.inference.guessing import guesses
from growth.expansion.accounts import source_account
from growth.expansion.jax_backend import build
from growth.expansion.numpy_backend import fold
from growth.rules.roles import final_gain_differs
from tests.helpers.networks import difference

# What a certificate promises in float64.
PROMISE = 1e-12


def steps(model: Any) -> dict[str, growth.Transformation]:
    """A step for each of the six transformations, to sizes that suit a model.

    A model in which values are as wide as queries widens both.
    """
    architecture = model.architecture
    first = architecture.layers[0]
    v, qk = growth.heads_expansion(first.v_dim + 2), growth.attention_expansion(first.qk_dim + 2)
    if getattr(model, "one_width", False):
        v = qk = growth.compose(v, qk)
    return {
        "mlp": growth.mlp_expansion(first.mlp_dim + 2),
        "heads": growth.head_addition(first.num_heads + first.queries_per_group),
        "v": v,
        "qk": qk,
        "embed": growth.hidden_dimension_expansion(architecture.embed_dim + 3),
        "layers": growth.layer_addition(2, position=1),
    }


def refusals(model: Any) -> dict[str, str]:
    """Why steps that a model's architecture cannot take are refused."""
    found = {}
    for name, step in steps(model).items():
        try:
            step(model.architecture)
        except growth.GrowthError as error:
            found[name] = str(error).partition(": ")[2]
    return found


def plans(model: Any) -> dict[str, growth.GrowthPlan]:
    """The plan of each step that can be taken, and of all of them at once."""
    refused = refusals(model)
    possible = {name: step for name, step in steps(model).items() if name not in refused}
    possible["all"] = growth.compose(*possible.values())
    return {name: step(model.architecture) for name, step in possible.items()}


def expand(tree: Any, plan: growth.GrowthPlan, blueprint: Blueprint, fresh: Any) -> Any:
    """What `growth.expand` makes, by numpy: nothing is compiled."""
    account = source_account(tree, plan, blueprint)
    old, new = account.of_source(tree), account.of_target(fresh)

    def array_of(array: Any) -> np.ndarray:
        parts = array.layout.split(new[array.name])

        def write_free(number: int, block: Any, into: np.ndarray) -> None:
            into[...] = parts[number][tuple(slice(r.start, r.stop) for r in block.target)]

        return fold(array, old, write_free)

    return build(account, tree, array_of, like=fresh)


def errors(model: Any) -> dict[str, float | str]:
    """By axis the largest change of a logit over the largest logit, or why it is refused."""
    tree = model.random(model.architecture, 0)
    before = model.apply(model.architecture, tree, model.inputs)
    found: dict[str, float | str] = dict(refusals(model))
    for name, plan in plans(model).items():
        fresh = model.random(plan.target, 1)
        grown = expand(tree, plan, model.blueprint, fresh)
        found[name] = difference(before, model.apply(plan.target, grown, model.inputs))
    return found


@dataclasses.dataclass(frozen=True)
class Inference:
    """How far a blueprint is guessed.

    Attributes:
      decided: of how many kinds of arrays names and shapes decide what they are.
      kinds: how many kinds there are.
      wrong: of what is decided, the paths that the blueprint by hand takes for something else.
      left_open: why the rest is open, as the error says it; empty where nothing is.
    """

    decided: int
    kinds: int
    wrong: tuple[str, ...]
    left_open: str


def inference(model: Any, try_out: bool = False) -> Inference:
    """How far the blueprint of a model is guessed, at sizes that all differ.

    Args:
      model: the code base.
      try_out: whether its function is at hand.
    """
    tree, architecture = model.distinct()
    right = _meaning(model.blueprint, tree, architecture)
    function = dict(apply=model.apply, inputs=model.inputs) if try_out else {}
    found = guesses(tree, architecture)
    left_open, known = "", found
    try:
        guessed = Blueprint.infer(tree, architecture, **function)
    except BlueprintError as error:
        left_open, known = str(error), [guess for guess in found if guess.sure]
        guessed = Blueprint([(g.path, g.readings[0].role, g.readings[0].axes) for g in known])
    paths = (path for guess in known for path, _ in guess.kind.shapes)
    located = guessed.locate(paths, architecture)
    norms_differ = final_gain_differs(architecture)
    wrong = [
        path
        for path, (rule, _, _) in located.items()
        if _alike(rule.roles, norms_differ) != _alike(right[path][0], norms_differ)
        or rule.dims != right[path][1]
    ]
    return Inference(len(known), len(found), tuple(wrong), left_open)


def _meaning(blueprint: Blueprint, tree: Any, architecture: Architecture) -> dict[str, Any]:
    found = blueprint.parameters(tree, architecture)
    return {p.name: (p.rule.roles, p.rule.dims) for p in found.values()}


def _alike(roles: Sequence[str], norms_differ: bool) -> list[str]:
    """Roles; a norm at the end may be called any norm, where both grow alike."""
    return [role if norms_differ else role.replace("final_", "norm_") for role in roles]
