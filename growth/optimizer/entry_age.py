"""How old each entry of a grown model is: after which step of training it was added.

Entries are added along axes, so an entry is as old as the youngest of its indices. That is a few
small vectors, whatever the size of the arrays, and compares fast inside a compiled function.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from growth.architecture import Architecture
from growth.blueprints import pytrees
from growth.blueprints.blueprint import Blueprint
from growth.blueprints.notation import BlueprintError
from growth.blueprints.parameters import Parameter, size
from growth.expansion import role_views
from growth.expansion.role_views import Section
from growth.expansion.segments import old_index
from growth.rules.growth_plan import GrowthPlan

_OF_LAYERS = ("kv_heads", "group", "qk", "v", "mlp")


@dataclasses.dataclass(frozen=True, eq=False)
class Births:
    """The step after which each index of each axis was added; 0 where training began with it.

    Attributes:
      architecture: what the model is.
      embed: of the dimensions of the stream, int32 [embed_dim].
      layers: of the layers, one number for each.
      within: for each layer, of the indices of its own axes, by name.
    """

    architecture: Architecture
    embed: np.ndarray
    layers: tuple[int, ...]
    within: tuple[dict[str, np.ndarray], ...]

    def of(self, tree: Any, blueprint: Blueprint) -> Any:
        """The step after which each entry was added: a tree like `tree`, int32.

        Args:
          tree: parameters of the architecture, or anything of their shapes.
          blueprint: what they are.
        """
        located = blueprint.parameters(tree, self.architecture)
        items = []
        for leaf in pytrees.leaves(tree):
            value = leaf.value
            if leaf.path in located and not pytrees.is_empty(value):
                value = self._of_array(located[leaf.path], value.shape)
            items.append((leaf.keys, leaf, value))
        return pytrees.build(items, tree)

    def _of_array(self, parameter: Parameter, shape: tuple[int, ...]) -> jax.Array:
        fixed = role_views.fixed_sizes(parameter, shape, self.architecture)
        sections = role_views.sections(parameter, self.architecture, fixed)
        parts = [self._of_section(section, parameter) for section in sections]
        return role_views.join(parts, parameter, self.architecture, fixed)

    def _of_section(self, section: Section, parameter: Parameter) -> jax.Array:
        result: jax.Array = jnp.zeros(section.shape, jnp.int32)
        stacked = section.axes.index("layers") if "layers" in section.axes else None
        for layer in parameter.layers[:1] if stacked is None else ():
            youngest = [self.layers[layer]]
            youngest += [
                int(self.within[layer][axis][index])
                for axis, index in parameter.path_axes.items()
                if axis in _OF_LAYERS
            ]
            result = jnp.maximum(result, max(youngest))
        if stacked is not None:
            of_layers = np.array([self.layers[layer] for layer in parameter.layers], np.int32)
            result = jnp.maximum(result, _along(of_layers, (stacked,), section.shape))
        for place, axis in enumerate(section.axes):
            length = section.shape[place]  # half of the columns, where heads are turned
            if axis == "embed":
                result = jnp.maximum(result, _along(self.embed, (place,), section.shape))
            elif axis in _OF_LAYERS:
                every = np.stack([self.within[i][axis][:length] for i in parameter.layers])
                if stacked is None:
                    own = _along(every[0], (place,), section.shape)
                else:
                    own = _along(every, (stacked, place), section.shape)
                result = jnp.maximum(result, own)
        return result


def births(architecture: Architecture, events: Sequence[tuple[int, GrowthPlan]]) -> Births:
    """The births of a model that has grown.

    Args:
      architecture: what training began with.
      events: the growth steps so far, each with the step of training after which it was.
    """
    found = Births(
        architecture,
        np.zeros(architecture.embed_dim, np.int32),
        (0,) * architecture.num_layers,
        tuple(_within(architecture, layer, 0) for layer in range(architecture.num_layers)),
    )
    for step, plan in events:
        found = _grown(found, step, plan)
    return found


def fitting(tree: Any, candidates: Sequence[Births], blueprints: Sequence[Blueprint]) -> int:
    """Which of some architectures a tree belongs to, by its shapes; the last that fits.

    Raises:
      BlueprintError: none fits.
    """
    problem: BlueprintError | None = None
    for number in reversed(range(len(candidates))):
        try:
            blueprints[number].check(tree, candidates[number].architecture)
        except BlueprintError as error:
            problem = problem or error
        else:
            return number
    assert problem is not None
    raise problem


def _within(architecture: Architecture, layer: int, step: int) -> dict[str, np.ndarray]:
    sizes = {axis: size(axis, architecture, range(layer, layer + 1)) for axis in _OF_LAYERS}
    return {axis: np.full(length or 0, step, np.int32) for axis, length in sizes.items()}


def _grown(before: Births, step: int, plan: GrowthPlan) -> Births:
    added = np.full(plan.target.embed_dim - plan.source.embed_dim, step, np.int32)
    layers, within = [], []
    for layer, origin in enumerate(plan.layer_sources):
        new = _within(plan.target, layer, step)
        if origin is not None:
            for axis, here in new.items():
                old = before.within[origin][axis]
                turned = plan.source.turns_whole_heads
                for index in range(len(here)):
                    at = old_index(axis, index, len(old), len(here), turned)
                    if at is not None:
                        here[index] = old[at]
        layers.append(step if origin is None else before.layers[origin])
        within.append(new)
    embed = np.concatenate([before.embed, added])
    return Births(plan.target, embed, tuple(layers), tuple(within))


def _along(births: np.ndarray, places: tuple[int, ...], shape: Sequence[int]) -> jax.Array:
    """Births along some axes of an array, to be broadcast over the others."""
    here = [births.shape[places.index(a)] if a in places else 1 for a in range(len(shape))]
    if tuple(sorted(places)) != places:
        births = births.T
    return jnp.asarray(births).reshape(here)
