"""The arrays of a tree, sorted into kinds: one for each rule that a blueprint would have."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence

from growth.architecture import Architecture
from growth.blueprints import pytrees
from growth.types import ParamsLike

_LAYERS = "{layers}"

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
        return tuple(re.findall(r"{(\w+)}", self.path))

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
        return self.path.partition(_LAYERS)[0].rpartition("/")[0]

    @functools.cached_property
    def layers(self) -> frozenset[int]:
        """The layers whose index stands in a path of it."""
        if _LAYERS not in self.path:
            return frozenset()
        before, _, after = self.path.partition(_LAYERS)
        rest = re.sub(r"\\{\w+\\}", r"\\d+", re.escape(after))
        pattern = re.compile(rf"{re.escape(before)}(\d+){rest}")
        found = [pattern.fullmatch(path) for path, _ in self.shapes]
        return frozenset(int(match[1]) for match in found if match)


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
    patterns = _Patterns(tuple(shapes), architecture)
    for path, shape in shapes.items():
        members.setdefault(patterns.of(path), []).append((path, shape))
    return [Kind(path, tuple(found)) for path, found in members.items()]


class _Patterns:
    """Which numbers in the paths of a tree are indices of layers or heads."""

    def __init__(self, paths: Sequence[str], architecture: Architecture) -> None:
        self._number = architecture.num_layers
        self._starts = {first for first, _ in architecture.layer_runs}
        self._values: dict[str, set[int]] = {}
        for path in paths:
            for match in re.finditer(r"\d+", path):
                self._values.setdefault(path[: match.start()], set()).add(int(match[0]))

    def of(self, path: str) -> str:
        """The path with its indices in braces."""
        result, done, seen = "", 0, False
        for match in re.finditer(r"\d+", path):
            stem = path[: match.start()]
            name = None
            if not seen and self._counts_layers(stem, path[match.end() :]):
                name, seen = "layers", True
            elif re.search(r"head\w*[_/]$", stem):
                name = "kv_heads"
            result += path[done : match.start()] + (f"{{{name}}}" if name else match[0])
            done = match.end()
        return result + path[done:]

    def _counts_layers(self, stem: str, rest: str) -> bool:
        values = self._values[stem]
        if values not in (set(range(self._number)), self._starts):
            return False
        # One number may be anything; two are often the two norms of a layer, or halves of a gate.
        called_so = re.search(r"(layer|block|h|resblock|decoder|encoder)s?[_/]$", stem.lower())
        parts = re.search(r"(ln|norms?|w|wi|fc|linear|dense|mlp|conv)_?/?$", stem.lower())
        return bool(called_so) or (len(values) > 1 and not (len(values) < 3 and parts))
