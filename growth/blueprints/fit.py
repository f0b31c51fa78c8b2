"""Whether arrays are what the rules of a blueprint say: what is wrong, in one sentence each."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from growth.architecture import Architecture
from growth.blueprints import path_indices
from growth.blueprints.notation import COLLECTION, BlueprintError, Rule
from growth.blueprints.parameters import Kind, Parameter, dim_size, misfits, siblings, size

_SHOWN = 20


def shape_problems(
    parameter: Parameter, shape: tuple[int, ...], architecture: Architecture
) -> Iterator[str]:
    """What is wrong with the shape or the indices of an array, given its rule."""
    rule, layers = parameter.rule, parameter.layers
    if layers.stop > architecture.num_layers or (
        "layers" in dict(parameter.indices) and not layers
    ):
        starts = ", ".join(str(first) for first, _ in architecture.layer_runs)
        runs = f", and its runs of equal layers start at {starts}" if "layers" in rule.axes else ""
        yield (
            f"{parameter.path}: no layer has this index; the architecture has "
            f"{architecture.num_layers} layers{runs}"
        )
        return
    if problems := list(misfits(parameter, architecture)):
        yield from problems
        return
    for axis, index in parameter.path_axes.items():
        limit = architecture.num_layers if axis == "layers" else size(axis, architecture, layers)
        if limit is not None and index >= limit:
            yield f"{parameter.path}: {axis} is {index}, but the architecture has only {limit}"
    if len(shape) != len(rule.dims):
        yield (
            f"{parameter.path}: shape {shape} has {len(shape)} dimensions, but the rule names "
            f"{len(rule.dims)}: {_show(rule)}"
        )
        return
    for dim, names in zip(shape, rule.dims, strict=True):
        expected, open_end = dim_size(parameter, names, architecture)
        if dim != expected and not (open_end and dim % expected == 0):
            yield (
                f"{parameter.path}: shape {shape} does not fit {_show(rule)}: "
                f"({' '.join(names)}) is {expected} in the architecture, not {dim}"
            )


def missing(parameters: Iterable[Parameter], architecture: Architecture) -> Iterator[str]:
    """Arrays that the path's indices leave out: each index must run from 0 to its size."""
    kinds: dict[Kind, list[Parameter]] = {}
    for parameter in parameters:
        kinds.setdefault(parameter.kind, []).append(parameter)
    some_layers: dict[frozenset[int], list[Parameter]] = {}
    for members in kinds.values():
        present = {parameter.path for parameter in members}
        have = frozenset(p.path_axes["layers"] for p in members if "layers" in p.path_axes)
        where = have if members[0].rule.in_some_layers else None
        absent = [p for p in siblings(members[0], architecture, where) if p.path not in present]
        gone = {p.path_axes.get("layers") for p in absent}
        if have and absent and not have & gone and "layers" not in members[0].rule.axes:
            some_layers.setdefault(have, []).append(members[0])
            continue
        for wanted in absent:
            yield f"{wanted.path}: missing, though {members[0].path} is there"
    if some_layers:
        yield _of_some_layers(some_layers, architecture)


def _of_some_layers(
    found: Mapping[frozenset[int], list[Parameter]], architecture: Architecture
) -> str:
    """The sentence about rules whose arrays some layers lack, by the layers that have them."""
    parts = []
    for have, firsts in found.items():
        lack = sorted({*range(architecture.num_layers)} - have)
        one, other = layers_in_words(sorted(have)), layers_in_words(lack)
        verbs = ("has" if len(layers) == 1 else "have" for layers in (have, lack))
        named = ", ".join(dict.fromkeys(first.rule.path for first in firsts))
        parts.append(f"{one} {next(verbs)} {named}, {other} {next(verbs)} not")
    example = re.sub(r"{([^{}]*layers[^{}]*)}", r"{\1?}", next(iter(found.values()))[0].rule.path)
    return (
        f"{'; '.join(parts)}: an index of layers in a path means every layer. Where layers are of "
        f"different kinds, mark the index of what only some have: {example}"
    )


def layers_in_words(indices: Sequence[int]) -> str:
    """Some layers as a person names them: "layers 0, 1 and 4"."""
    *most, last = map(str, indices)
    return f"layers {', '.join(most)} and {last}" if most else f"layer {last}"


def unmatched(
    paths: Sequence[str], rules: Sequence[tuple[Any, ...]], architecture: Architecture
) -> Iterator[str]:
    """What to say of paths that no rule matches: one sentence for all that differ in numbers only.

    Args:
      paths: the paths.
      rules: those of the blueprint.
      architecture: what the tree belongs to.
    """
    patterns = [rule[0] for rule in rules]
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(re.sub(r"\d+", "#", path), []).append(path)
    for same in groups.values():
        like = f" (nor {len(same) - 1} more of its kind)" if len(same) > 1 else ""
        yield f"{same[0]}: matched by no rule{like}{_nearest(same[0], patterns, architecture)}"


def _nearest(path: str, patterns: Sequence[str], architecture: Architecture) -> str:
    """The rule whose path is most like one, and where they differ; nothing where none is."""
    given = path.removeprefix(COLLECTION).split("/")

    def differences(pattern: str) -> list[tuple[str, str]]:
        wanted = pattern.split("/")
        length = max(len(given), len(wanted))
        pairs = zip(
            given + [""] * (length - len(given)),
            wanted + [""] * (length - len(wanted)),
            strict=True,
        )
        return [(g, w) for g, w in pairs if not _same(g, w, architecture)]

    def likeness(pattern: str) -> tuple[int, float]:
        return -len(differences(pattern)), difflib.SequenceMatcher(None, path, pattern).ratio()

    if not patterns:
        return ""
    best = max(patterns, key=likeness)
    wrong = differences(best)
    if len(wrong) >= max(len(given), len(best.split("/"))):
        return ""
    where = " and ".join(f"{w or 'nothing'!r} for {g or 'nothing'!r}" for g, w in wrong[:2])
    hints = (f"; {hint}" for g, w in wrong[:2] if (hint := _unwritten_zero(g, w)))
    return f"; the nearest is {best!r}, which has {where}{next(hints, '')}"


def _same(given: str, wanted: str, architecture: Architecture) -> bool:
    """Whether a name in a path is one that a pattern means, whatever the layer or the head."""
    indices = path_indices.read(wanted, given)
    number = architecture.num_layers
    return indices is not None and indices.get(path_indices.NUM_LAYERS, number) == number


def _unwritten_zero(given: str, wanted: str) -> str:
    """What to write where only the first of a row has no number; nothing where that is not it."""
    marked = re.sub(r"_?{(\w+)}", r"{_\1}", wanted, count=1)
    try:
        indices = path_indices.read(marked, given)
    except path_indices.PathError:
        return ""
    return f"where the first has no number, write {marked!r}" if indices is not None else ""


def refuse(problems: Sequence[str]) -> None:
    """Raises what is wrong with a tree, if anything is.

    Raises:
      BlueprintError: it lists the problems, up to twenty.
    """
    if problems:
        more = [f"... and {len(problems) - _SHOWN} more"] * (len(problems) > _SHOWN)
        shown = "\n  ".join([*problems[:_SHOWN], *more])
        raise BlueprintError(f"the blueprint does not fit the tree:\n  {shown}")


def _show(rule: Rule) -> str:
    return repr(" ".join(d[0] if len(d) == 1 else f"({' '.join(d)})" for d in rule.dims))


def locations(
    found: Mapping[str, Sequence[Any]],
    rules: Sequence[tuple[Any, ...]],
    architecture: Architecture,
) -> Iterator[str]:
    """What is wrong with which rules match which paths.

    Args:
      found: for each path what matches it: (rule, indices, what stands before it) each.
      rules: those of the blueprint.
      architecture: what the tree belongs to.
    """
    for path, matches in found.items():
        if len(matches) > 1:
            several = " and ".join(repr(rule.path) for rule, _, _ in matches)
            yield f"{path}: matched by {several}; one rule must match it"
    lost = [path for path, matches in found.items() if not matches]
    yield from unmatched(lost, rules, architecture)
