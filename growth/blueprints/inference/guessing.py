"""Guesses: what each kind of array is, as far as its name, its shape and the architecture say."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence

from growth.architecture import Architecture
from growth.blueprints import fit, pytrees
from growth.blueprints.inference import demands, names, paths
from growth.blueprints.inference.demands import Objection
from growth.blueprints.inference.paths import Kind
from growth.blueprints.inference.readings import (
    ANY,
    NORM_ROLES,
    Reading,
    fits,
    norm_readings,
    readings,
)
from growth.rules.axes import AXES
from growth.rules.roles import ROLES
from growth.types import ParamsLike

# How many readings of a whole tree are looked at; where there are more, what is open stays open.
_AT_MOST = 4096


@dataclasses.dataclass(frozen=True)
class Guess:
    """One rule of a blueprint, as far as it can be guessed.

    Attributes:
      kind: the arrays.
      readings: what they may be, the likeliest first.
      doubts: why the only reading that is left is not sure, or why there is none.
    """

    kind: Kind
    readings: tuple[Reading, ...]
    doubts: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """The pattern."""
        return self.kind.path

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the first array."""
        return self.kind.shape

    @property
    def sure(self) -> bool:
        """Whether there is one reading, and nothing speaks against it."""
        return len(self.readings) == 1 and not self.doubts


def guesses(tree: ParamsLike, architecture: Architecture, axes: ParamsLike = None) -> list[Guess]:
    """Guesses a rule for each kind of parameter.

    Args:
      tree: parameters, or their shapes. What is no array is passed over.
      architecture: the architecture that they belong to.
      axes: the names of the axes of each parameter, where the model has them: a tree of
        `PartitionSpec`s, such as `nn.get_partition_spec` gives.
    """
    kinds = paths.kinds(paths.arrays(tree), architecture)
    named = {
        leaf.name: " ".join(leaf.value)
        for leaf in pytrees.leaves(axes or {})
        if not pytrees.is_empty(leaf.value) or leaf.value == ()
    }
    proposals = [_Proposal(kind, kinds, named, architecture) for kind in kinds]
    found = _agreeing([p.by_name for p in proposals], proposals, architecture)
    partial = demands.of_some_layers(kinds, architecture)
    rows = paths.rows(kinds, architecture)
    result = []
    for proposal, (left, doubts) in zip(proposals, found, strict=True):
        doubts = [*proposal.doubts, *doubts]
        if proposal.kind.path in partial:
            have = partial[proposal.kind.path]
            lack = {*range(architecture.num_layers)} - have
            one, other = (fit.layers_in_words(sorted(layers)) for layers in (have, lack))
            differ = "layers of different kinds, which a rule says by {layers?}"
            doubts.append(f"in {one}, not in {other}: {differ}")
        if proposal.kind.path in rows and (doubts or len(left) != 1):
            doubts.append(rows[proposal.kind.path])
        result.append(Guess(proposal.kind, tuple(left), tuple(dict.fromkeys(doubts))))
    return result


class _Proposal:
    """What one kind may be: by its name, and whatever its name by its shape.

    Attributes:
      kind: the kind.
      by_name: the readings that its names propose, or all where they say nothing.
      doubts: why there are none.
    """

    def __init__(
        self, kind: Kind, kinds: Sequence[Kind], named: dict[str, str], architecture: Architecture
    ) -> None:
        self.kind, self._architecture = kind, architecture
        self._stacks = demands.stacks_of(kinds)
        self._says_closing = any(map(names.closes, filter(names.names_norm, kinds)))
        beside = [k for k in kinds if k.module == kind.module and k is not kind]
        is_norm = self._is_norm(beside)
        self.doubts: list[str] = []
        if path := next((path for path, _ in kind.shapes if path in named), ""):
            self.by_name = self._named(path, named, is_norm)
            return
        if names.names_qk_norm(kind):
            self.by_name = self._in_place(norm_readings(kind, "qk_norm", architecture))
        elif self._is_branch_gain:
            self.by_name = self._in_place(readings(kind, ("branch_gain",), architecture))
        elif is_norm:
            self.by_name = self._in_place(self._norms(self._norm_roles()))
        else:
            self.by_name = self._proposed()

    @functools.cached_property
    def by_shape(self) -> list[Reading]:
        """All readings that fit its shape and its place."""
        found = (readings(self.kind, roles, self._architecture) for roles in ANY)
        return self._in_place([*itertools.chain.from_iterable(found), *self._norms(NORM_ROLES)])

    @property
    def _is_branch_gain(self) -> bool:
        """Whether the array is the gain of a branch: called a gain, and not one of a norm."""
        called = self.kind.part in paths.GAINS and not names.names_norm(self.kind)
        return self._architecture.branch_gain and called

    def _is_norm(self, beside: Sequence[Kind]) -> bool:
        """Whether the array is one of a norm's: as wide as the stream, and called so.

        A gain is a norm's whatever that is called; a bias or a weight is where nothing beside it is
        a kernel.
        """
        kind = self.kind
        if names.names_norm(kind) and not names.names_qk_norm(kind):
            return True
        alone = not any(len(other.shape) > len(kind.shape) for other in beside)
        return bool(alone and kind.part in paths.GAINS and self._norms(("norm_gain",))) or bool(
            alone
            and kind.part in paths.BIASES
            and any(other.part in paths.GAINS for other in beside)
            and self._norms(("norm_gain",))
        )

    def _norm_roles(self) -> list[str]:
        """The roles of a norm that its place and its name allow, the likeliest first."""
        arch, kind = self._architecture, self.kind
        if "layers" in kind.indices or len(kind.shape) > 1 or not self._stacks:
            inside = ["norm"] if arch.norm_placement != "closing" else ["closing"]
            if arch.norm_placement == "sandwich" and not self._says_closing:
                inside = ["norm", "closing"]
            elif arch.norm_placement == "sandwich" and names.closes(kind):
                inside = ["closing"]
        else:
            inside = []
        outside = ["final"] * arch.final_norm
        outside += ["norm"] * demands.ends_differ(arch, self._stacks)
        if arch.embed_norm:
            outside = ["closing"] if names.follows_embedding(kind) else outside or ["closing"]
        places = [*inside, *(outside or ["final"])]
        return [f"{place}_{part}" for place in places for part in names.norm_parts(kind)]

    def _norms(self, roles: Sequence[str]) -> list[Reading]:
        found = (norm_readings(self.kind, role, self._architecture) for role in roles)
        return [reading for some in found for reading in some]

    def _in_place(self, found: Sequence[Reading]) -> list[Reading]:
        return [
            reading
            for reading in dict.fromkeys(found)
            if demands.has_place(self.kind, reading, self._architecture, self._stacks)
        ]

    def _proposed(self) -> list[Reading]:
        """What the nearest name proposes that proposes anything of that shape."""
        known, misplaced = [], []
        for proposals in names.proposals(self.kind):
            found = [
                r for roles in proposals for r in readings(self.kind, roles, self._architecture)
            ]
            if placed := self._in_place(found):
                return placed
            known += proposals
            misplaced += found
        if not known:
            return self.by_shape
        if misplaced:
            inside = "inside a layer" if "layers" in self.kind.indices else "outside of all layers"
            self.doubts.append(f"{misplaced[0].roles[0]} cannot stand {inside}")
        else:
            called = " or ".join("+".join(roles) for roles in dict.fromkeys(known))
            self.doubts.append(f"called like {called}, whose shape is another")
        return []

    def _named(self, path: str, named: dict[str, str], is_norm: bool) -> list[Reading]:
        """The reading of an array whose axes have names."""
        module = path.rpartition("/")[0]
        kernel = next(
            (named[p] for n in paths.PLAIN if (p := f"{module}/{n}") in named), named[path]
        )
        if names.names_qk_norm(self.kind):
            roles: list[names.Roles] = [("qk_norm",)]
        elif self._is_branch_gain:
            roles = [("branch_gain",)]
        elif is_norm:
            roles = [(role,) for role in self._norm_roles()]
        else:
            roles = [role for found in names.proposals(self.kind) for role in found]
        grow = [name for name in kernel.split() if name in AXES and name != "layers"]
        may = [r for r in roles if len(r) == 1 and all(name in ROLES[r[0]].fills for name in grow)]
        found = [Reading(role, named[path]) for role in dict.fromkeys(may)]
        return self._in_place([r for r in found if fits(self.kind, r, self._architecture)])


def _agreeing(
    found: Sequence[Sequence[Reading]],
    proposals: Sequence[_Proposal],
    architecture: Architecture,
) -> Iterator[tuple[Sequence[Reading], list[str]]]:
    """The readings that occur where a whole tree is read as the architecture can have it.

    Where no such reading of the tree is left, whatever the objections are about is open.
    """
    places = [i for i, readings in enumerate(found) if readings]
    kinds = [proposals[i].kind for i in places]
    trees = list(_trees(kinds, [found[i] for i in places], architecture, _AT_MOST))
    lowest = min((cost for cost, _, _ in trees), default=(0, 0))
    best = [(chosen, objections) for cost, chosen, objections in trees if cost == lowest]
    hard = dict.fromkeys(o for _, objections in best for o in objections if o.hard)
    too_many = math.prod(len(found[i]) for i in places) > _AT_MOST
    for i, proposal in enumerate(proposals):
        if i not in places:
            yield [], []
            continue
        left = list(dict.fromkeys(chosen[places.index(i)] for chosen, _ in best))
        if too_many:
            left = list(found[i])
        about = [o.text for o in hard if any(o.concerns(proposal.kind, r) for r in left)]
        if about:
            left = list(dict.fromkeys([*left, *found[i], *proposal.by_shape]))
        yield left, about


def readings_of_trees(
    guesses: Sequence[Guess], architecture: Architecture, at_most: int
) -> list[tuple[Reading, ...]] | None:
    """What a whole tree may be, the likeliest first: those that contradict the architecture least.

    None where there are too many to look at.
    """
    kinds, found = [g.kind for g in guesses], [g.readings for g in guesses]
    if math.prod(map(len, found)) > 8 * _AT_MOST:
        return None
    trees = list(_trees(kinds, found, architecture, 8 * _AT_MOST))
    least = min(cost[0] for cost, _, _ in trees)
    best = sorted((c for c in trees if c[0][0] == least), key=lambda entry: entry[0])
    return [chosen for _, chosen, _ in best] if len(best) <= at_most else None


def _trees(
    kinds: Sequence[Kind],
    found: Sequence[Sequence[Reading]],
    architecture: Architecture,
    at_most: int,
) -> Iterator[tuple[tuple[int, int], tuple[Reading, ...], list[Objection]]]:
    """Readings of all kinds at once, with what contradicts them; (hard, soft) counts come first."""
    for chosen in itertools.islice(itertools.product(*found), at_most):
        objections = list(demands.objections(list(zip(kinds, chosen, strict=True)), architecture))
        hard = sum(o.hard for o in objections)
        yield (hard, len(objections) - hard), chosen, objections
