"""Guessing a blueprint: from names, shapes and, where a model has them, the names of its axes.

A guess is taken only where one reading fits. Sizes that are equal by chance are what makes readings
ambiguous, so guess at a size where all differ: shapes are enough (`jax.eval_shape`), and a
blueprint holds for every size.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence

from growth.architecture import Architecture
from growth.blueprints import pytrees
from growth.blueprints.parameters import size
from growth.rules.axes import AXES
from growth.rules.roles import ROLES
from growth.types import ParamsLike

# Names of parameters, or of the modules that hold them, by role: the first that is found, from the
# end of the path. Names of norms come first: `q_norm` is no query.
_NAMES: tuple[tuple[str, str], ...] = (
    ("qk_norm", r"(q|query|k|key)_?(norm|ln|layernorm)"),
    ("norm", r".*(norms?|ln)\d*(_\w*)?|ln_?\w*"),
    ("position_bias", r"relative_?attention_?bias|rel\w*bias|rel_?pos\w*"),
    ("router", r"router|gate"),
    ("query", r"q|query|w_?q|q_?proj|c_q|to_q"),
    ("key", r"k|key|w_?k|k_?proj|c_k|to_k"),
    ("value", r"v|value|w_?v|v_?proj|c_v|to_v"),
    ("fused", r"qkv|query_?key_?value|c_attn|wqkv|qkv_?proj|in_proj"),
    ("attention_out", r"o|out|w_?o|o_?proj|out_?proj|proj|c_proj|dense|to_out"),
    (
        "mlp_in",
        r"up|gate|fc|fc_?1|c_fc|w_?1|w_?3|wi|wi_\d|(up|gate)_?proj|w_?in|dense_h_to_4h|mlp_?1",
    ),
    ("mlp_out", r"down|fc_?2|w_?2|down_?proj|dense_4h_to_h|mlp_?2|w?o|out|c?_?proj"),
    ("position", r"wpe|pos|position|pos\w*embed\w*|position\w*|cls\w*|class_?token"),
    ("unembed", r"lm_?head|unembed\w*|head|output|w_?out|logits\w*|embed_out"),
    ("embedding", r"wte|embed|tok\w*|embedding\w*|embed_tokens|table|shared|word\w*|patch\w*"),
)
_BIASES = ("bias", "b")

# What a parameter is called within its module; says nothing of its role.
_PLAIN = (*_BIASES, "kernel", "weight", "w", "scale", "gain", "g", "embedding")

# What a dimension may be made of, by role, for kernels that map the first to the last.
_KERNELS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "query": (("embed",), ("kv_heads", "group", "qk")),
    "key": (("embed",), ("kv_heads", "qk")),
    "value": (("embed",), ("kv_heads", "v")),
    "attention_out": (("kv_heads", "group", "v"), ("embed",)),
    "mlp_in": (("embed",), ("mlp",)),
    "mlp_out": (("mlp",), ("embed",)),
    "embedding": (("vocab",), ("embed",)),
    "position": (("length",), ("embed",)),
    "unembed": (("embed",), ("vocab",)),
    "router": (("embed",), ("experts",)),
    "position_bias": (("buckets",), ("kv_heads", "group")),
}


@dataclasses.dataclass(frozen=True)
class Guess:
    """One rule of a blueprint, as far as it can be guessed.

    Attributes:
      path: the pattern.
      shape: of the arrays.
      roles: those that the path may mean, and for which there are axes that fit.
      readings: the axes that fit; exactly one where the guess is sure.
    """

    path: str
    shape: tuple[int, ...]
    roles: tuple[str, ...]
    readings: tuple[str, ...]

    @property
    def sure(self) -> bool:
        """Whether there is one role and one reading."""
        return len(self.roles) == len(self.readings) == 1


def guesses(tree: ParamsLike, architecture: Architecture, axes: ParamsLike = None) -> list[Guess]:
    """Guesses a rule for each kind of parameter.

    Args:
      tree: parameters, or their shapes.
      architecture: the architecture that they belong to.
      axes: the names of the axes of each parameter, where the model has them: a tree of
        `PartitionSpec`s, such as `nn.get_partition_spec` gives.
    """
    shapes = {_short(leaf.path): tuple(leaf.value.shape) for leaf in pytrees.leaves(tree)}
    named = {_short(leaf.path): tuple(leaf.value) for leaf in pytrees.leaves(axes or {})}
    result: dict[str, Guess] = {}
    for path, pattern in _patterns(list(shapes), architecture).items():
        if pattern in result:
            continue
        fitting = {}
        for role in _roles(path, architecture):
            if path in named:
                kernel = named[_kernel_beside(path, named)]
                readings = iter([" ".join(named[path])] if _may_have(role, kernel) else [])
            else:
                readings = _readings(path, pattern, role, shapes, architecture)
            if found := tuple(dict.fromkeys(readings)):
                fitting[role] = found
        result[pattern] = Guess(pattern, shapes[path], tuple(fitting), sum(fitting.values(), ()))
    return list(result.values())


def listing(found: Sequence[Guess]) -> str:
    """The guesses as Python, to be copied; what is open stands in comments."""
    rows = []
    for guess in found:
        role = guess.roles[0] if len(guess.roles) == 1 else "?"
        axes = guess.readings[0] if guess.sure else "?"
        about = f"# {guess.shape}"
        if not guess.roles:
            about += " unmatched"
        elif not guess.sure:
            several = guess.roles if len(guess.roles) > 1 else guess.readings
            about += " ambiguous: " + " or ".join(several)
        rows.append((f'("{guess.path}",', f'"{role}",', f'"{axes}"),', about))
    widths = [max(map(len, column), default=0) for column in zip(*rows, strict=True)]
    lines = [
        "    "
        + " ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join(["growth.Blueprint([", *lines, "])"])


def _short(path: str) -> str:
    return path.removeprefix("params/")


def _patterns(paths: Sequence[str], architecture: Architecture) -> dict[str, str]:
    """Each path with its indices in braces."""
    return {path: _pattern(path, paths, architecture) for path in paths}


def _pattern(path: str, paths: Sequence[str], architecture: Architecture) -> str:
    starts = {first for first, _ in architecture.layer_runs}
    result, done, layer = "", 0, None
    for match in re.finditer(r"\d+", path):
        stem, value = path[: match.start()], int(match[0])
        heads = re.compile(re.escape(stem) + r"(\d+)")
        values = {int(found[1]) for other in paths if (found := heads.match(other))}
        name = None
        if layer is None and values in (set(range(architecture.num_layers)), starts):
            if len(values) > 1 or re.search(r"(layer|block|h)s?[_/]$", stem):
                name, layer = "layers", value
        elif re.search(r"head\w*[_/]$", stem):
            name = "kv_heads"
        result += path[done : match.start()] + (f"{{{name}}}" if name else match[0])
        done = match.end()
    return result + path[done:]


def _roles(path: str, architecture: Architecture) -> list[str]:
    """The roles that the last word of a path may mean which means any."""
    *modules, leaf = [_word(segment) for segment in path.split("/")]
    words = modules if modules and leaf in _PLAIN else [*modules, leaf]
    for word in reversed(words):
        roles = [role for role, names in _NAMES if re.fullmatch(names, word)]
        if "qk_norm" in roles:
            return ["qk_norm"]
        if "norm" in roles:
            part = "bias" if leaf in _BIASES else "gain"
            if architecture.closes_branches and re.search("post|closing", word):
                return [f"closing_{part}"]
            final = re.search(r"final|^ln_f$", word)
            return [f"final_{part}" if final else f"norm_{part}"]
        if roles:
            return roles
    return []


def _word(segment: str) -> str:
    """The name in a segment of a path, without the index of a block before it."""
    return re.sub(r"^(layer|block|h)s?_\d+_", "", segment.lower())


def _readings(
    path: str,
    pattern: str,
    role: str,
    shapes: Mapping[str, tuple[int, ...]],
    architecture: Architecture,
) -> Iterator[str]:
    """The axes that an array of a role may have, as far as its shape allows.

    A bias has a role only where the kernel beside it may have it.
    """
    shape, kernel = shapes[path], _kernel_beside(path, shapes)
    if kernel != path and not any(_readings(kernel, pattern, role, shapes, architecture)):
        return
    in_path = {name for name in AXES if f"{{{name}}}" in pattern}
    is_bias = path.rpartition("/")[2] in _BIASES
    inputs, outputs = (
        tuple(axis for axis in side if axis not in in_path and not _single(axis, architecture))
        for side in _KERNELS.get(role, ((), ("qk",) if role == "qk_norm" else ("embed",)))
    )
    orders = [(outputs,)] if is_bias or not inputs else [(inputs, outputs), (outputs, inputs)]
    number = len(architecture.layers)
    for order in orders:
        for merged in itertools.product((False, True), repeat=len(order)):
            sides = zip(order, merged, strict=True)
            dims = [d for side, m in sides for d in ([side] if m else [(axis,) for axis in side])]
            stacks = (("layers",), ("1",), ("experts",) if "mlp" in role else ("1",))
            for before in ((), *((stack,) for stack in stacks)):
                all_dims = [*before, *dims]
                if len(all_dims) != len(shape):
                    continue
                known = [_sizes(names, number, architecture) for names in all_dims]
                if all(None in k or n in k for k, n in zip(known, shape, strict=True)):
                    yield " ".join(d[0] if len(d) == 1 else f"({' '.join(d)})" for d in all_dims)


def _kernel_beside(path: str, paths: Collection[str]) -> str:
    """The kernel that a bias belongs to; the path itself where there is none."""
    module, _, leaf = path.rpartition("/")
    if leaf not in _BIASES:
        return path
    return next((p for name in _PLAIN[2:] if (p := f"{module}/{name}") in paths), path)


def _may_have(role: str, names: Sequence[str]) -> bool:
    """Whether a parameter of a role can have axes of these names."""
    grow = [name for name in names if name in AXES and name != "layers"]
    return all(name in ROLES[role].fills for name in grow)


def _single(axis: str, architecture: Architecture) -> bool:
    """Whether an axis is left out, since it has one entry in every layer."""
    return axis == "group" and all(s.queries_per_group == 1 for s in architecture.layers)


def _sizes(names: tuple[str, ...], number: int, architecture: Architecture) -> set[int | None]:
    """The sizes that a dimension made of such factors has in some layer; None for any size."""
    fixed = {"vocab": architecture.vocab_size, "length": architecture.max_length, "1": 1}
    if names == ("layers",):
        return {number, *(length for _, length in architecture.layer_runs)}
    result: set[int | None] = set()
    for layer in range(number):
        sizes = [fixed.get(n) or size(n, architecture, range(layer, layer + 1)) for n in names]
        known = [n for n in sizes if n is not None]
        whole: int | None = math.prod(known) if len(known) == len(sizes) else None
        result.add(whole)
    return result
