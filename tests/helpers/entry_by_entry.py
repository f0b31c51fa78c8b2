"""Growth of one array, entry by entry: what blocks are judged by.

It asks the table of rules what new entries are along an axis, and nothing else of what grows
arrays: which entries are new is derived here from sizes and origins alone.
"""

import dataclasses
import itertools
import random

import numpy as np

from growth import Architecture, Blueprint
from growth.blueprints.notation import parse
from growth.blueprints.parameters import Parameter, layers_of, siblings
from growth.blueprints.presence import FORBIDDEN
from growth.expansion.role_views import array_layout
from growth.rules import roles
from growth.rules.composition import grow_to
from growth.rules.growth_plan import GrowthPlan

FIXED = {"vocab": 5, "copies": 2}

# Kinds of parameters: a role, or several in one array, and axes. Layers are added to most.
KINDS = (
    ("query", "embed kv_heads group qk"),
    ("query", "embed (kv_heads group qk)"),
    ("query", "(kv_heads group qk)"),
    ("key", "(kv_heads qk) embed"),
    ("value", "embed kv_heads v"),
    (("query", "key", "value"), "embed (role kv_heads group qk)"),
    (("query", "key", "value"), "(role kv_heads group qk)"),
    ("attention_out", "(kv_heads group v) embed"),
    ("attention_out", "embed"),
    ("mlp_in", "embed mlp"),
    (("mlp_in", "mlp_in"), "embed (role mlp copies)"),
    ("mlp_out", "mlp embed"),
    ("norm_gain", "embed"),
    ("norm_bias", "embed"),
    ("closing_gain", "embed"),
)
WITHOUT_LAYERS = (
    ("w", "embedding", "vocab embed"),
    ("w", "unembed", "embed vocab"),
    ("w", "final_gain", "embed"),
    ("w_{embed}", "embedding", "vocab"),
)
IN_PATHS = (
    ("l_{layers}/d_{embed}/w", "mlp_out", "mlp"),
    ("l_{layers}/h_{kv_heads}/w", "value", "embed v"),
    ("l_{layers}/h_{kv_heads}/w", "attention_out", "v embed"),
)
RULES = (
    *WITHOUT_LAYERS,
    *IN_PATHS,
    *(("l_{layers}/w", role, axes) for role, axes in KINDS),
    *(("w", role, f"layers {axes}") for role, axes in KINDS),
    *(("l_{layers}/w", role, f"layers {axes}") for role, axes in KINDS),
)

_SIZES = dict(vocab_size=5, max_length=8, embed_dim=5, num_layers=2, mlp_dim=3, norm_eps=1e-3)
_HEADS = dict(num_heads=4, num_kv_heads=2, qk_dim=4, v_dim=3)
ARCHITECTURES = (
    Architecture.llama(**_SIZES, **_HEADS),
    Architecture.gpt2(**_SIZES, **_HEADS),
    Architecture.gpt2(**_SIZES, **_HEADS, fixed_norm_eps=True),
    Architecture(**_SIZES, **_HEADS, norm="layernorm", final_norm=False),
    Architecture(
        **_SIZES, **_HEADS, unit_offset=True, scaled_embedding=True, norm_placement="sandwich"
    ),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """Arrays of one rule, and a growth step."""

    rule: tuple
    plan: GrowthPlan

    @property
    def blueprint(self):
        return Blueprint([self.rule])

    def parameters(self, architecture):
        """All arrays that a model of an architecture has by the rule."""
        rule = parse(*self.rule)
        indices = dict.fromkeys(rule.indices, 0)
        first = Parameter(rule, tuple(indices.items()), "", layers_of(rule, indices, architecture))
        return list(siblings(first, architecture))

    def arrays(self, architecture, seed, dtype=np.float64):
        """Random arrays of an architecture, by path."""
        draw = np.random.default_rng(seed)
        return {
            p.path: (1 + draw.random(array_layout(p, architecture, FIXED).shape)).astype(dtype)
            for p in self.parameters(architecture)
        }


def may_have(architecture, rule):
    """Whether a model of an architecture may have such an array."""
    parsed = parse(*rule)
    axes = {*parsed.axes, *parsed.indices}
    forbidding = [row for row in FORBIDDEN if row.when(architecture)]
    return not any(row.concerns(parsed.roles, axes) for row in forbidding)


def random_case(seed):
    """Some rule, and a growth step along some dimensions."""
    draw = random.Random(seed)
    rule = draw.choice(RULES)
    architecture = draw.choice([a for a in ARCHITECTURES if may_have(a, rule)])
    sizes = dict(embed_dim=8, mlp_dim=7, qk_dim=6, v_dim=4)
    sizes = {name: size for name, size in sizes.items() if draw.random() < 0.6}
    if draw.random() < 0.6:
        both = [(6, 3), (6, 2), (9, 3)] if "kv_heads}" not in rule[0] else [(6, 3)]
        sizes["num_heads"], sizes["num_kv_heads"] = draw.choice(both)
    if draw.random() < 0.6:
        sizes["num_layers"] = draw.choice([3, 4])
        number = sizes["num_layers"] - 2
        sizes["position"] = tuple(draw.randint(0, 2) for _ in range(number))
    return Case(rule, grow_to(**sizes)(architecture))


def grown(case, arrays, fresh):
    """The arrays of the larger model by path, entry by entry, in float64.

    Args:
      case: the case.
      arrays: those of the smaller model.
      fresh: arrays of the larger model whose entries are taken where anything keeps the function.
    """
    return {
        p.path: _grown(p, case, arrays, np.array(fresh[p.path], np.float64))
        for p in case.parameters(case.plan.target)
    }


def _grown(parameter, case, arrays, result):
    plan = case.plan
    layout = array_layout(parameter, plan.target, FIXED)
    for number, (view, part) in enumerate(zip(layout.views, layout.split(result), strict=True)):
        for index in itertools.product(*map(range, view.shape)):
            value = _value(
                parameter, number, view, dict(zip(view.axes, index, strict=True)), case, arrays
            )
            if value is not None:
                part[index] = value
    return result


def _value(parameter, number, view, index, case, arrays):
    """What an entry must be; None where it may be anything."""
    plan, role = case.plan, view.role
    offset = roles.offset(role, plan.source)
    path = dict(parameter.path_axes)
    layer = path.pop("layers", 0) if "layers" in parameter.path_axes or "layers" in index else None
    if "layers" in index:
        layer += index["layers"]
    origin = layer if layer is None else plan.layer_sources[layer]
    if layer is not None and origin is None:
        return _fixed(roles.fill(role, "layers", plan.source), offset)

    def is_new(axis, at):
        return at >= _length(axis, plan.source, origin)

    whole = [roles.fill(role, axis, plan.source) for axis, at in path.items() if is_new(axis, at)]
    if roles.FREE in whole or roles.ZERO in whole:
        return _fixed(roles.FREE if roles.FREE in whole else roles.ZERO, offset)
    within = {
        axis: roles.fill(role, axis, plan.source)
        for axis, at in index.items()
        if axis != "layers" and is_new(axis, at)
    }
    for fill in (roles.FREE, roles.ZERO):
        if fill in within.values():
            return _fixed(fill, offset)
    axis = "embed" if roles.MEAN in (*whole, *within.values()) else None
    number_of_old = _length("embed", plan.source, origin)
    values = [
        _old(
            parameter, number, {**index, **path} | ({axis: i} if axis else {}), origin, case, arrays
        )
        for i in (range(number_of_old) if axis else [0])
    ]
    return np.mean(values)


def _fixed(fill, offset):
    return None if fill == roles.FREE else -offset


def _old(parameter, number, index, origin, case, arrays):
    """An old entry, multiplied."""
    plan = case.plan
    for source in case.parameters(plan.source):
        at = dict(source.path_axes)
        first = at.pop("layers", 0)
        if any(index[axis] != i for axis, i in at.items()):
            continue
        if origin is not None and origin not in source.layers:
            continue
        layout = array_layout(source, plan.source, FIXED)
        view, part = layout.views[number], layout.split(arrays[source.path])[number]
        place = tuple(origin - first if axis == "layers" else index[axis] for axis in view.axes)

        def growth(axis):
            lengths = (_length(axis, plan.source, origin), _length(axis, plan.target, origin))
            return lengths[1] / lengths[0]

        axes = (*view.axes, *source.path_axes)
        factor = roles.factor(view.role, plan.source, axes, growth)
        offset = roles.offset(view.role, plan.source)
        return (float(part[place]) + offset) * factor - offset
    raise AssertionError(f"no array of the smaller model has {index} of {parameter.path}")


def _length(axis, architecture, layer):
    """How many entries an axis of a view has."""
    shape = architecture.layers[layer or 0]
    turned = architecture.turns_halves
    return {
        "embed": architecture.embed_dim,
        "kv_heads": shape.num_kv_heads,
        "group": shape.queries_per_group,
        "qk": shape.qk_dim // 2 if turned else shape.qk_dim,
        "half": 2,
        "v": shape.v_dim,
        "mlp": shape.mlp_dim,
    }.get(axis, 10**9)
