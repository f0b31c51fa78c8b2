"""Layers of different kinds: which layers have what only some have, before and after growth.

A layer that is new is of the kind of the layer that it is like.
"""

from collections.abc import Iterable, Iterator, Mapping

from growth.blueprints.fit import layers_in_words
from growth.blueprints.parameters import Kind, Parameter
from growth.rules.growth_plan import GrowthPlan

# For each kind of array that only some layers have those layers.
LayersByKind = Mapping[Kind, frozenset[int]]


def some_layers(parameters: Iterable[Parameter]) -> LayersByKind:
    """The layers that have an array of each kind, for the kinds that only some layers have."""
    found: dict[Kind, frozenset[int]] = {}
    for parameter in parameters:
        if parameter.rule.in_some_layers:
            found[parameter.kind] = found.get(parameter.kind, frozenset()) | {*parameter.layers}
    return found


def layers_like(layers: frozenset[int], plan: GrowthPlan) -> frozenset[int]:
    """The layers of the larger model that continue some layers of the smaller one, or are like."""
    return frozenset(i for i, like in enumerate(plan.layer_templates) if like in layers)


def kind_problems(wanted: LayersByKind, given: LayersByKind, plan: GrowthPlan) -> Iterator[str]:
    """What is wrong with the kinds of the layers of the model at its larger size.

    Args:
      wanted: what the plan makes, by the layers of the larger model.
      given: what that model has.
      plan: the growth step.
    """
    new = [i for i, origin in enumerate(plan.layer_sources) if origin is None]
    likes = "".join(f"; new layer {i} is like old layer {plan.layer_templates[i]}" for i in new)
    for kind in dict.fromkeys((*wanted, *given)):
        made, there = wanted.get(kind, frozenset()), given.get(kind, frozenset())
        if made != there:
            yield (
                f"{kind[0].path}: in the model at its larger size {_words(there)} it, but by the "
                f"plan {_words(made)} it{likes}. Add layers of the right kind at the right place, "
                f"whole periods where kinds take turns: growth.layer_addition(count, position, "
                f"like) names for each new layer an old one of its kind"
            )


def _words(layers: frozenset[int]) -> str:
    if not layers:
        return "no layer has"
    return f"{layers_in_words(sorted(layers))} {'has' if len(layers) == 1 else 'have'}"
