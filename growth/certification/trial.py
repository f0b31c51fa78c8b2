"""A guessed blueprint, tried out: which readings of what is open keep the model's function.

Random parameters are grown a little along every axis, once for each reading of what is open, and
the model is run before and after. Only where it computes the same can the reading be right.
"""

import dataclasses
from collections.abc import Sequence

import jax

from growth.architecture import Architecture
from growth.blueprints import pytrees
from growth.blueprints.inference.guessing import Guess, readings_of_trees
from growth.blueprints.inference.listing import listing
from growth.blueprints.inference.trials import Apply
from growth.blueprints.notation import BlueprintError
from growth.certification.trial_model import NotRunError, Readings, TrialModel
from growth.rules.composition import compose
from growth.rules.growth_plan import GrowthError
from growth.rules.transformations import (
    Transformation,
    attention_expansion,
    head_addition,
    heads_expansion,
    hidden_dimension_expansion,
    layer_addition,
    mlp_expansion,
)
from growth.types import Inputs, ParamsLike

# How many readings of a whole tree are run; how many at once with all axes in one step.
_AT_MOST, _AT_ONCE = 1024, 128


def try_out(
    tree: ParamsLike,
    architecture: Architecture,
    guesses: Sequence[Guess],
    apply: Apply,
    inputs: Inputs,
) -> list[Guess]:
    """Decides between the readings of what is open by what growth with them computes.

    Args:
      tree: parameters, or their shapes; their values don't matter.
      architecture: the architecture that they belong to.
      guesses: what they may be.
      apply: (architecture, parameters, inputs) to an array.
      inputs: what `apply` takes.

    Returns:
      The guesses with the readings that are left: one each, unless nothing could decide.

    Raises:
      BlueprintError: no reading keeps the function, or the model runs at no other size.
      InputError: a leaf of the tree is no array; it is named.
    """
    pytrees.shapes(tree)
    if not all(guess.readings for guess in guesses):
        return list(guesses)
    trees = readings_of_trees(guesses, architecture, at_most=_AT_MOST)
    if trees is None:
        many = "it may be too many things to try them out: write down what you know"
        return [
            guess if guess.sure else dataclasses.replace(guess, doubts=(*guess.doubts, many))
            for guess in guesses
        ]
    with jax.enable_x64(True):
        model = TrialModel(tree, architecture, apply, inputs)
        left, unseen = _survivors(model, guesses, trees)
    result = []
    for place, guess in enumerate(guesses):
        readings = tuple(dict.fromkeys(chosen[place] for chosen in left))
        # What was run is decided: where several readings are left, they grow the model alike.
        doubts = guess.doubts if unseen else ()
        kept = readings if unseen else readings[:1]
        result.append(dataclasses.replace(guess, readings=kept, doubts=doubts))
    return result


def _survivors(
    model: TrialModel, guesses: Sequence[Guess], trees: Sequence[Readings]
) -> tuple[list[Readings], list[str]]:
    """The readings of the tree that keep the function, the likeliest first.

    Also the axes whose growth could not be run, and tells these readings apart.
    """
    steps = _steps(model.architecture)
    if len(trees) <= _AT_ONCE:
        plan = _all_steps(model.architecture)(model.architecture)
        try:
            found = model.errors(plan, guesses, trees)
            if exact := [chosen for chosen in trees if found[chosen] <= model.tolerance]:
                return model.most_alive(plan, guesses, exact), []
        except NotRunError:
            pass  # it may run with some of them
    left = list(trees)
    failed: dict[str, str] = {}
    ran: set[str] = set()
    for name, step in (steps | _coupled_steps(model.architecture)).items():
        axes = {*name.split(" and ")}
        if len(axes) > 1 and not axes & {*failed}:
            continue  # each of them was run alone
        plan = step(model.architecture)
        try:
            found = model.errors(plan, guesses, left)
        except NotRunError as error:
            failed[name] = str(error)
            continue
        ran |= axes
        exact = [chosen for chosen in left if found[chosen] <= model.tolerance]
        if not exact:
            best = min(found, key=found.__getitem__)
            raise BlueprintError(
                f"growing {name} changes what the model computes by {min(found.values()):.0e} of "
                f"the largest output, whatever is assumed of what is open. Is the architecture "
                f"right, and does the model take its epsilon, its rotary base and its widths from "
                f"it? What was assumed:\n{listing(_with(guesses, best))}"
            )
        left = model.most_alive(plan, guesses, exact)
    if not ran:
        why = "; ".join(f"{name}: {text}" for name, text in failed.items())
        raise BlueprintError(f"the model could be run at no other size, so nothing decides: {why}")
    unseen = [name for name in steps if name not in ran]
    plans = {name: steps[name](model.architecture) for name in unseen}
    return left, [name for name in unseen if model.tells_apart(plans[name], guesses, left)]


def _with(guesses: Sequence[Guess], chosen: Readings) -> list[Guess]:
    return [
        dataclasses.replace(guess, readings=(reading,), doubts=())
        for guess, reading in zip(guesses, chosen, strict=True)
    ]


def _steps(architecture: Architecture) -> dict[str, Transformation]:
    """A small step along each axis that can grow, by what it is called; layers come last."""
    layers = architecture.layers
    heads = [(s.num_kv_heads, s.queries_per_group) for s in layers]
    steps: dict[str, Transformation] = {
        "mlp_dim": mlp_expansion(tuple(s.mlp_dim + 3 for s in layers)),
        "num_heads": head_addition(tuple((g + 1) * r for g, r in heads)),
        "v_dim": heads_expansion(tuple(s.v_dim + 2 for s in layers)),
        "qk_dim": attention_expansion(tuple(s.qk_dim + 2 for s in layers)),
        "embed_dim": hidden_dimension_expansion(architecture.embed_dim * 3 // 2),
    }
    if _is_grouped(architecture):
        each = tuple(g * (r + 1) for g, r in heads)
        steps["queries of a group"] = head_addition(each, tuple(g for g, _ in heads))
    steps["num_layers"] = layer_addition(1, position=0)
    return {name: step for name, step in steps.items() if _is_possible(step, architecture)}


def _coupled_steps(architecture: Architecture) -> dict[str, Transformation]:
    """Steps of models in which one size follows from another, named after both."""
    heads = tuple(2 * s.num_heads for s in architecture.layers)
    steps = _steps(architecture)
    found = {}
    if {"qk_dim", "v_dim"} <= {*steps}:
        found["qk_dim and v_dim"] = compose(steps["qk_dim"], steps["v_dim"])
    if {"embed_dim", "num_heads"} <= {*steps}:  # heads are embed_dim / num_heads wide
        wider = hidden_dimension_expansion(2 * architecture.embed_dim)
        found["embed_dim and num_heads"] = compose(wider, head_addition(heads))
    return found


def _all_steps(architecture: Architecture) -> Transformation:
    """All of them in one."""
    steps = _steps(architecture)
    heads = [(s.num_kv_heads, s.queries_per_group) for s in architecture.layers]
    if steps.pop("queries of a group", None) and "num_heads" in steps:
        both = tuple((g + 1) * (r + 1) for g, r in heads)
        steps["num_heads"] = head_addition(both, tuple(g + 1 for g, _ in heads))
    return compose(*steps.values())


def _is_grouped(architecture: Architecture) -> bool:
    return any(layer.queries_per_group > 1 for layer in architecture.layers)


def _is_possible(step: Transformation, architecture: Architecture) -> bool:
    try:
        step(architecture)
    except GrowthError:
        return False
    return True
