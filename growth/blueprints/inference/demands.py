"""What an architecture has of each role, and what of a reading of a whole tree contradicts it.

A name alone decides nothing: whatever a tree is taken for has to be what the architecture can have,
as many times as it has it.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence

from growth.architecture import Architecture
from growth.architecture.validation import BIASES
from growth.blueprints.inference.names import norm_of
from growth.blueprints.inference.paths import Kind
from growth.blueprints.inference.readings import NORM_ROLES, Reading
from growth.blueprints.presence import FORBIDDEN
from growth.rules.roles import ROLES, final_gain_differs

Assigned = Sequence[tuple[Kind, Reading]]

_ATTENTION = ("query", "key", "value", "attention_out")
_MLP = ("mlp_in", "mlp_out")


@dataclasses.dataclass(frozen=True)
class Objection:
    """What contradicts the architecture in a reading of a tree.

    Attributes:
      text: why, as a clause.
      roles: the readings that it is about are of these roles.
      modules: and in these modules; empty where it is about all.
      hard: whether it is a contradiction, and not only that something is not there.
    """

    text: str
    roles: tuple[str, ...]
    modules: tuple[str, ...] = ()
    hard: bool = True

    def concerns(self, kind: Kind, reading: Reading) -> bool:
        """Whether a kind, so read, is what it is about."""
        here = not self.modules or bool({kind.module, norm_of(kind)} & {*self.modules})
        return here and bool({*reading.roles} & {*self.roles})


def has_place(kind: Kind, reading: Reading, architecture: Architecture, stacks: int) -> bool:
    """Whether arrays that stand where these do can have such roles.

    What stands outside of all layers is not inside them, and the other way round.

    Args:
      kind: the arrays.
      reading: what they are taken for.
      architecture: the architecture.
      stacks: how many stacks of layers have an index of a layer in their paths; see `stacks_of`.
    """
    inside = "layers" in kind.indices or "layers" in reading.names
    for role in reading.roles:
        if role == "branch_gain" and not architecture.branch_gain:
            return False
        of_layers = "layers" in ROLES[role].fills
        if inside and not of_layers:
            return False
        if not inside and of_layers:
            single = architecture.num_layers == 1 and not stacks
            behind_embedding = role.startswith("closing_") and architecture.embed_norm
            behind_stack = role.startswith("norm_") and ends_differ(architecture, stacks)
            if not (single or behind_embedding or behind_stack or role == "position_bias"):
                return False
    return True


def stacks_of(kinds: Iterable[Kind]) -> int:
    """How many stacks of layers have an index of a layer in their paths."""
    return len({kind.home for kind in kinds if "layers" in kind.indices})


def ends_differ(architecture: Architecture, stacks: int) -> bool:
    """Whether of the norms at the ends of several stacks that before the output layer is special.

    Another stack, such as an encoder, ends in a norm that is read by layers.
    """
    return stacks > 1 and architecture.final_norm and final_gain_differs(architecture)


def objections(assigned: Assigned, architecture: Architecture) -> Iterator[Objection]:
    """What contradicts an architecture in a reading of all arrays of a tree.

    Args:
      assigned: the kinds, each with what it is taken for.
      architecture: the architecture.
    """
    kernels = [(kind, reading) for kind, reading in assigned if reading.is_kernel]
    yield from _attention(kernels)
    yield from _mlp(kernels, architecture)
    yield from _orientation(kernels)
    yield from _ends(kernels, architecture)
    yield from _norms(assigned, kernels, architecture)
    yield from _biases(assigned, architecture)
    yield from _forbidden(assigned, architecture)


def _forbidden(assigned: Assigned, architecture: Architecture) -> Iterator[Objection]:
    """What the architecture can't have at all."""
    rules = [rule for rule in FORBIDDEN if rule.when(architecture)]
    for kind, reading in assigned:
        axes = {*kind.indices, *reading.names}
        for rule in rules:
            if rule.concerns(reading.roles, axes):
                yield Objection(
                    f"{rule.words}, but {kind.path} would have the role {reading.roles[0]}",
                    rule.roles,
                    (kind.module,),
                )


def _counts(kernels: Assigned) -> collections.Counter[str]:
    """How many kernels there are of each role; experts in arrays of their own count once."""
    found = {(_without_expert(kind), reading) for kind, reading in kernels}
    return collections.Counter(role for _, reading in found for role in reading.roles)


def _attention(kernels: Assigned) -> Iterator[Objection]:
    counts = _counts(kernels)
    there = {role: counts[role] for role in _ATTENTION if counts[role]}
    if len({*there.values()}) > 1:
        numbers = ", ".join(f"{number} of {role}" for role, number in there.items())
        yield Objection(
            f"an attention has one kernel of each role, but there are {numbers}", _ATTENTION
        )
    for _ in range((len(_ATTENTION) - len(there)) % len(_ATTENTION)):
        yield Objection("an attention lacks a kernel", _ATTENTION, hard=False)


def _mlp(kernels: Assigned, architecture: Architecture) -> Iterator[Objection]:
    counts = _counts(kernels)
    inner, outer = counts["mlp_in"], counts["mlp_out"]
    each = 2 if architecture.gated_mlp else 1
    if inner and outer and inner != each * outer:
        yield Objection(
            f"with gated_mlp={architecture.gated_mlp} there are {each} of mlp_in for each mlp_out, "
            f"but here {inner} for {outer}",
            _MLP,
        )
    elif inner != each * outer:
        yield Objection("an MLP lacks a kernel", _MLP, hard=False)
    experts = {n for kind, r in kernels if "mlp_in" in r.roles for n in _experts(kind, r, kernels)}
    for kind, reading in kernels:
        if reading.role == "router":
            if not {*kind.shape} & experts:
                yield Objection("a router chooses among experts, but there are none", ("router",))
            experts.discard(0)
    if experts and not counts["router"]:
        yield Objection("experts lack a router", _MLP, hard=False)


def _experts(kind: Kind, reading: Reading, kernels: Assigned) -> Iterator[int]:
    """The number of experts that an array is one of, or holds."""
    dims = re.findall(r"\w+|\([^)]*\)", reading.axes)
    if "experts" in dims:
        yield kind.shape[dims.index("experts")]
    like = _without_expert(kind)
    alike = sum(_without_expert(other) == like for other, _ in kernels)
    if alike > 1:
        yield alike


def _without_expert(kind: Kind) -> str:
    """The path without the number of an expert."""
    return re.sub(r"(expert\w*?[_/]?)\d+", r"\1#", kind.path)


def _orientation(kernels: Assigned) -> Iterator[Objection]:
    """A module system has inputs first in all kernels, or last; an einsum has any order."""
    sides: dict[bool, set[str]] = {True: set(), False: set()}
    for _, reading in kernels:
        if reading.inputs_first is not None:
            sides[reading.inputs_first] |= {*reading.roles} & {*_ATTENTION, *_MLP}
    if all(roles & {*_MLP} for roles in sides.values()):
        yield Objection("one kernel of the MLP has its inputs first, another last", _MLP)
    elif all(sides.values()) and {*_MLP} & {*sides[True], *sides[False]}:
        yield Objection("some kernels have their inputs first, others last", _MLP, hard=False)


def _ends(kernels: Assigned, architecture: Architecture) -> Iterator[Objection]:
    """The embedding, the positions and the output layer."""
    counts = _counts(kernels)
    allowed = 0 if architecture.tied_embeddings else 1
    if counts["unembed"] > allowed:
        yield Objection(
            f"with tied_embeddings={architecture.tied_embeddings} there is "
            f"{'an' if allowed else 'no'} output layer, but here {counts['unembed']}",
            ("unembed", "embedding"),
        )
    elif counts["unembed"] < allowed:
        yield Objection("the output layer is not there", ("unembed",), hard=False)
    if not counts["embedding"]:
        yield Objection("the embedding is not there", ("embedding",), hard=False)


def _norms(
    assigned: Assigned, kernels: Assigned, architecture: Architecture
) -> Iterator[Objection]:
    """How many norms there are, and what one has."""
    parts: dict[str, dict[str, list[Kind]]] = {"norm": {}, "final": {}, "closing": {}}
    outside: dict[str, list[Kind]] = {}
    behind: dict[str, list[Kind]] = {}
    stacks = stacks_of(kind for kind, _ in assigned)
    elsewhere = {"closing": outside} | ({"norm": behind} if stacks else {})
    for kind, reading in assigned:
        name, _, _ = reading.roles[0].partition("_")
        if reading.role in NORM_ROLES:
            inside = "layers" in kind.indices or "layers" in reading.names
            place = parts[name] if inside else elsewhere.get(name, parts[name])
            place.setdefault(norm_of(kind), []).append(kind)
    yield from _pairs(assigned, architecture)

    counts = _counts(kernels)
    attentions, mlps = counts["attention_out"], counts["mlp_out"]
    branches = {attentions + m for m in ((*range(1, mlps + 1),) if counts["router"] else (mlps,))}
    before = architecture.norm_placement != "closing"
    shared = architecture.parallel == "shared_norm"
    wanted = {
        "norm": {n - shared for n in branches} if before else {0},
        "closing": branches if architecture.closes_branches else {0},
    }
    about = f"norm_placement={architecture.norm_placement!r}"
    if architecture.parallel != "none":
        about += f" and parallel={architecture.parallel!r}"
    for name, numbers in wanted.items():
        number = len(parts[name])
        roles = tuple(f"{n}_{part}" for n in wanted for part in ("gain", "bias"))
        there = any(parts[n] for n in wanted)
        if number not in numbers and (there or architecture.norm_gain):
            yield Objection(
                f"with {about} and {attentions} attention and {mlps} MLP, a layer has "
                f"{' or '.join(map(str, sorted(numbers)))} norms of role {name}, but here {number}",
                roles,
                hard=there,
            )

    # One for each stack; of several, all but the last may be those of layers.
    ends = {"final": (parts["final"], architecture.final_norm, "final_norm")}
    ends["closing"] = (outside, architecture.embed_norm, "embed_norm")
    if len(behind) not in {0, stacks - 1}:
        yield Objection(
            f"behind {stacks} stacks there are {stacks - 1} norms that layers read, but here "
            f"{len(behind)}",
            ("norm_gain", "norm_bias", "final_gain", "final_bias"),
            tuple(behind),
        )
    for name, (found, there, field) in ends.items():
        numbers = {1} if name == "final" and ends_differ(architecture, stacks) else {1, stacks or 1}
        if len(found) not in (numbers if there else {0}) and (found or architecture.norm_gain):
            yield Objection(
                f"with {field}={there} there {'is one norm' if there else 'is no norm'} of role "
                f"{name} outside of the layers, but here {len(found)}",
                ("final_gain", "final_bias", "closing_gain", "closing_bias"),
                hard=bool(found),
            )


def _pairs(assigned: Assigned, architecture: Architecture) -> Iterator[Objection]:
    """One norm has at most one gain and one bias."""
    found: dict[tuple[str, str], collections.Counter[str]] = {}
    for kind, reading in assigned:
        name, _, part = reading.roles[0].partition("_")
        if reading.role in NORM_ROLES:
            found.setdefault((norm_of(kind), name), collections.Counter())[part] += 1
    bias = architecture.has_bias("norm")
    for (module, name), counts in found.items():
        roles = (f"{name}_gain", f"{name}_bias")
        if max(counts.values()) > 1:
            yield Objection(
                f"one norm has one gain and one bias, but {module} more", roles, (module,)
            )
        if counts["bias"] and not bias and architecture.norm != "rmsnorm":
            yield Objection(
                f"use_bias is {architecture.use_bias}, but {module} would have a bias",
                roles,
                (module,),
            )
        if not counts["gain"]:
            yield Objection(f"{module} would have a bias and no gain", roles, (module,))
        if bias and not counts["bias"]:
            yield Objection(f"{module} has no bias", roles, (module,), hard=False)


def _biases(assigned: Assigned, architecture: Architecture) -> Iterator[Objection]:
    """Biases are of the roles of their kernels, and there where the architecture has them."""
    kernels = {kind.module: reading for kind, reading in assigned if reading.is_kernel}
    biases = [
        (kind, reading)
        for kind, reading in assigned
        if not reading.is_kernel and not {*reading.roles} - {*BIASES, "unembed", "embedding"}
    ]
    has = _counts([(kind, reading) for kind, reading in assigned if reading.is_kernel])
    for role, number in _counts(biases).items():
        if number > has[role]:
            yield Objection(
                f"a kernel has one bias, but there are {number} of {role} for {has[role]}", (role,)
            )
    for kind, reading in biases:
        beside = kernels.get(kind.module)
        if beside is not None and not _goes_with(reading, beside):
            yield Objection(
                f"a bias has the role and the axes of its kernel, but {kind.path} would not",
                (*reading.roles, *beside.roles),
                (kind.module,),
            )
        for role in reading.roles:
            if role in BIASES and not architecture.has_bias(role):
                yield Objection(
                    f"use_bias is {architecture.use_bias}, but there is a bias of {role}",
                    (role,),
                    (kind.module,),
                )


def _goes_with(bias: Reading, kernel: Reading) -> bool:
    if bias.roles != kernel.roles:
        return False
    if len(bias.roles) == 1:
        return True
    rest = [d for d in re.findall(r"\w+|\([^)]*\)", kernel.axes) if d != "embed"]
    return re.findall(r"\w+|\([^)]*\)", bias.axes) == rest


def of_some_layers(kinds: Iterable[Kind], architecture: Architecture) -> dict[str, frozenset[int]]:
    """The paths of kinds that some layers have and some have not, with the layers that have it."""
    everywhere = frozenset(range(architecture.num_layers))
    starts = frozenset(first for first, _ in architecture.layer_runs)
    return {k.path: k.layers for k in kinds if k.layers and k.layers not in (everywhere, starts)}
