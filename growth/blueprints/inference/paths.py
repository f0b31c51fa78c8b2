"""The arrays of a tree, sorted into kinds: one for each rule that a blueprint would have."""

import dataclasses
import functools
import re
from collections.abc import Collection, Iterable, Mapping

from growth.architecture import Architecture
from growth.blueprints import path_indices, pytrees
from growth.types import ParamsLike

_LAYERS = re.compile(r"{_?layers}")

# What a parameter is called within its module, which says nothing of the module; by what it may be.
GAINS = ("scale", "gain", "g", "gamma")
BIASES = ("bias", "b", "beta", "offset", "shift")
PLAIN = ("kernel", "weight", "w", "embedding", "embeddings", "array")

# The same as a part of a name, as in `q_bias`, `ln_1_g` or `norm_weight`; a letter is one only by
# itself, or `emb` would end in a bias.
_ENDING = re.compile(
    rf"(\w+?)(?:_?({'|'.join(n for n in (*GAINS, *BIASES, *PLAIN) if len(n) > 1)})|_([gbw]))"
)


@dataclasses.dataclass(frozen=True)
class Kind:
    """Arrays that one rule is about: those of all layers, or heads, at one place.

    Attributes:
      path: the pattern, with its indices in braces.
      shapes: (path, shape) of each array.
    """

    path: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the first array."""
        return self.shapes[0][1]

    @property
    def indices(self) -> tuple[str, ...]:
        """The axes that are indices in the path."""
        return tuple(re.findall(r"{_?([^\W_]\w*)}", self.path))

    @functools.cached_property
    def _split(self) -> tuple[str, str]:
        module, _, leaf = self.path.rpartition("/")
        if leaf == "array" and (end := module.rpartition("/"))[2] in (*GAINS, *BIASES, *PLAIN):
            module, _, leaf = end  # a node around the array, as haliax has
        if module and leaf.lower() in (*GAINS, *BIASES, *PLAIN):
            return module, leaf.lower()
        if match := _ENDING.fullmatch(leaf.lower()):
            return f"{module}/{match[1]}".strip("/"), match[2] or match[3]
        return self.path, ""

    @property
    def module(self) -> str:
        """What the array belongs to: a norm, a linear map. The path, if it is one by itself."""
        return self._split[0]

    @property
    def part(self) -> str:
        """What it is called within that, such as "bias"; empty where it has no such name."""
        return self._split[1]

    @property
    def is_bias(self) -> bool:
        """Whether it is called as a bias is."""
        return self.part in BIASES

    @property
    def home(self) -> str:
        """The path up to the layer's index: the stack of layers that it stands in."""
        return _LAYERS.split(self.path, maxsplit=1)[0].rpartition("/")[0]

    @functools.cached_property
    def layers(self) -> frozenset[int]:
        """The layers whose index stands in a path of it."""
        if not _LAYERS.search(self.path):
            return frozenset()
        found = [path_indices.read(self.path, path) for path, _ in self.shapes]
        return frozenset(indices["layers"] for indices in found if indices is not None)


def arrays(tree: ParamsLike) -> dict[str, tuple[int, ...]]:
    """The shape of each array of a tree by path; whatever is no array is passed over."""
    return {
        leaf.name: tuple(leaf.value.shape)
        for leaf in pytrees.leaves(tree)
        if not pytrees.is_empty(leaf.value) and hasattr(leaf.value, "shape")
    }


def kinds(shapes: Mapping[str, tuple[int, ...]], architecture: Architecture) -> list[Kind]:
    """The kinds of arrays, in the order of their first."""
    members: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    patterns = _Patterns(shapes.keys(), architecture)
    for path, shape in shapes.items():
        members.setdefault(patterns.of(path), []).append((path, shape))
    return [Kind(path, tuple(found)) for path, found in members.items()]


def rows(kinds: Iterable[Kind], architecture: Architecture) -> dict[str, str]:
    """By path how a rule would name arrays whose numbers seem to count those of all layers.

    Which of them are alike in each layer nothing says for sure, so a person does.
    """
    layers = architecture.num_layers
    free = [kind.path for kind in kinds if not kind.indices]
    names: dict[tuple[str, str], set[int]] = {}
    for path in free:
        for match in re.finditer(r"(_?)([1-9]\d*|0)(?=/|$)", path):
            names.setdefault((path[: match.start()], match[1]), set()).add(int(match[2]))
    found: dict[str, str] = {}
    for (name, mark), numbers in names.items():
        row = re.compile(rf"{re.escape(name)}(?:{mark}\d+)?(?:/.*)?")
        members = [path for path in free if row.fullmatch(path)]
        each = (max(numbers) + 1) // layers
        if layers > 1 and each > 1 and numbers >= {*range(1, max(numbers) + 1)}:
            first = name + (f"{mark}{{{each}*layers}}" if 0 in numbers else f"{{_{each}*layers}}")
            text = (
                f"if the numbers count the arrays of all layers, {each} in each, {first} and "
                f"{name}{mark}{{{each}*layers+1}} are the first two"
            )
            found |= dict.fromkeys(members, text)
    return found


class _Patterns:
    """Which numbers in the paths of a tree are indices of layers or heads."""

    def __init__(self, paths: Collection[str], architecture: Architecture) -> None:
        self._number = architecture.num_layers
        self._starts = {first for first, _ in architecture.layer_runs}
        self._values: dict[str, set[int]] = {}
        for path in paths:
            for match in re.finditer(r"\d+", path):
                self._values.setdefault(path[: match.start()], set()).add(int(match[0]))
        stems = sorted(filter(self._lacks_zero, self._values), key=len)  # the outermost first
        rows = [self._row(stem, paths) for stem in stems]
        self._rows = [row for row in rows if row is not None]

    def of(self, path: str) -> str:
        """The path with its indices in braces."""
        result, done, seen = "", 0, False
        if row := next((m for row in self._rows if (m := row.fullmatch(path))), None):
            result, done, seen = f"{row[1]}{{_layers}}", row.start(2), True
        for match in re.finditer(r"\d+", path):
            if match.start() < done:
                continue
            stem = path[: match.start()]
            name = None
            if not seen and self._counts_layers(stem):
                name, seen = "layers", True
            elif re.search(r"head\w*[_/]$", stem):
                name = "kv_heads"
            result += path[done : match.start()] + (f"{{{name}}}" if name else match[0])
            done = match.end()
        return result + path[done:]

    def _counts_layers(self, stem: str) -> bool:
        values = self._values[stem]
        if values not in (set(range(self._number)), self._starts):
            return False
        return self._may_count_layers(stem, len(values))

    def _may_count_layers(self, stem: str, number: int) -> bool:
        # One number may be anything; two are often the two norms of a layer, or halves of a gate.
        called_so = re.search(r"(layer|block|h|resblock|decoder|encoder)s?[_/]$", stem.lower())
        parts = re.search(r"(ln|norms?|w|wi|fc|linear|dense|mlp|conv)_?/?$", stem.lower())
        return bool(called_so) or (number > 1 and not (number < 3 and parts))

    def _lacks_zero(self, stem: str) -> bool:
        """Whether numbers count the layers but the first, and no layers are counted before them."""
        return (
            self._number > 1
            and stem.endswith("_")
            and self._values[stem] == set(range(1, self._number))
            and self._may_count_layers(stem, self._number)
            and not any(self._counts_layers(stem[: m.start()]) for m in re.finditer(r"\d+", stem))
        )

    def _row(self, stem: str, paths: Collection[str]) -> re.Pattern[str] | None:
        """What is called `name`, `name_1`, ..., as Haiku counts, if some array is in all of it."""
        pattern = re.compile(rf"({re.escape(stem[:-1])})(?:_[1-9]\d*)?((?:/.*)?)")
        inside: dict[str, set[str]] = {}
        for match in filter(None, map(pattern.fullmatch, paths)):
            inside.setdefault(match.string[: match.start(2)], set()).add(match[2])
        common = set.intersection(*inside.values())
        return pattern if len(inside) == self._number and common else None
