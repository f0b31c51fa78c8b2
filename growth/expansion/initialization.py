"""What new entries are where any value preserves the function: a policy, as data.

A policy is a word, `"fresh"`, `"copy"`, `"copy:20"` or `"gradmax"`, or a mapping that says one for
each transformation or each role:

    growth.expand(params, plan, key=key, init={"layer_addition": "copy", "query": "fresh"})

Zero is no policy. The other side of the product is zero already, and with zeros on both sides
neither would ever get a gradient.
"""

import dataclasses
import difflib
from collections.abc import Mapping

from growth.errors import InputError
from growth.rules.axes import BY_NAME, TRANSFORMATIONS
from growth.rules.roles import ROLES


@dataclasses.dataclass(frozen=True)
class Fresh:
    """The model's own initializer, at the target's size."""

    def __str__(self) -> str:
        return "fresh"


@dataclasses.dataclass(frozen=True)
class Copy:
    """Existing units in turn, and of the layer that a new one is like, plus noise.

    Attributes:
      signal_to_noise: the standard deviation of the array that is copied, over that of the noise.
        Without noise a unit and its copy would get the same gradients for ever.
    """

    signal_to_noise: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.signal_to_noise < float("inf"):
            raise InputError(
                f"signal_to_noise is {self.signal_to_noise!r}, but it must be a positive number: "
                f"without noise, units and their copies would stay equal for ever"
            )

    def __str__(self) -> str:
        return f"copy:{self.signal_to_noise:g}"


@dataclasses.dataclass(frozen=True)
class GradMax:
    """What makes the first gradient of the zero side largest, on one batch.

    Attributes:
      steps: of gradient ascent, from the model's own initializer.
    """

    steps: int = 10

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise InputError(f"steps of gradmax is {self.steps!r}, but at least 1 is needed")

    def __str__(self) -> str:
        return f"gradmax:{self.steps}"


InitMethod = Fresh | Copy | GradMax

_WORDS: dict[str, type] = {"fresh": Fresh, "copy": Copy, "gradmax": GradMax}


@dataclasses.dataclass(frozen=True)
class InitPolicy:
    """A method for every role and every axis.

    Attributes:
      default: for what is not named.
      named: pairs of a role or a transformation, and its source. A role goes before.
    """

    default: InitMethod = Fresh()
    named: tuple[tuple[str, InitMethod], ...] = ()

    def method(self, role: str, axis: str) -> InitMethod:
        """The method for entries of a role that are new along an axis."""
        named = dict(self.named)
        transformation = BY_NAME[axis].transformation
        return named.get(role) or named.get(transformation) or self.default

    @property
    def methods(self) -> tuple[InitMethod, ...]:
        """All that there are."""
        return tuple(dict.fromkeys((self.default, *(source for _, source in self.named))))

    def __str__(self) -> str:
        named = [f"{name} {source}" for name, source in self.named]
        return ", ".join([str(self.default), *named])

    def needs(self, kind: type) -> bool:
        """Whether any method is of a kind."""
        return any(isinstance(method, kind) for method in self.methods)


FRESH = InitPolicy()

# What says a policy: a word, or a mapping from transformations and roles to words.
InitPolicyLike = str | InitMethod | InitPolicy | Mapping[str, str | InitMethod]


def init_policy(init: InitPolicyLike) -> InitPolicy:
    """The policy that a word or a mapping says; see the module.

    Raises:
      InputError: a word, a role or a transformation is unknown.
    """
    if isinstance(init, InitPolicy):
        return init
    if not isinstance(init, Mapping):
        return InitPolicy(_method(init))
    names = (*TRANSFORMATIONS, *ROLES)
    for name in init:
        if name not in (*names, "default"):
            near = difflib.get_close_matches(str(name), names, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(names)}"
            raise InputError(f"init names {name!r}, which is no transformation and no role; {hint}")
    named = {name: _method(word) for name, word in init.items()}
    default = named.pop("default", Fresh())
    return InitPolicy(default, tuple(named.items()))


def _method(word: str | InitMethod) -> InitMethod:
    if isinstance(word, InitMethod):
        return word
    name, _, number = word.partition(":") if isinstance(word, str) else ("", "", "")
    if name in ("zero", "zeros"):
        raise InputError(
            f"init is {word!r}, but zeros are refused: the other side of the product is zero "
            f"already, and neither would ever get a gradient"
        )
    if name not in _WORDS or (number and name == "fresh"):
        raise InputError(
            f"init is {word!r}, but it must be 'fresh', 'copy', 'copy:SIGNAL_TO_NOISE', 'gradmax', "
            f"'gradmax:STEPS', or a mapping from transformations or roles to these"
        )
    if not number:
        return _WORDS[name]()
    try:
        value = float(number) if name == "copy" else int(number)
    except ValueError:
        raise InputError(f"init is {word!r}, but {number!r} is not a number") from None
    return _WORDS[name](value)
