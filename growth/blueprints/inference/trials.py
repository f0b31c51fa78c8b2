"""Who decides between readings by trying them out, where the model's function is at hand.

To try a blueprint is to grow with it, and that stands above this room. So the front door says who
does it, and opens that when it is first asked for.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax

    from growth.architecture import Architecture
    from growth.blueprints.inference.guessing import Guess
    from growth.types import Inputs, Params, ParamsLike

# The model's function: of its architecture, its parameters and its inputs.
Apply = Callable[["Architecture", "Params", "Inputs"], "jax.Array"]

# Leaves the readings that keep the function.
Judge = Callable[["ParamsLike", "Architecture", "Sequence[Guess]", Apply, "Inputs"], "list[Guess]"]

_openers: list[Callable[[], Judge]] = []


def register(opener: Callable[[], Judge]) -> None:
    """Says who decides, as a function that opens it."""
    _openers[:] = [opener]


def judge() -> Judge:
    """Who decides."""
    return _openers[0]()
