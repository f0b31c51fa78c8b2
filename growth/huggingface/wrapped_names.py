"""Names of tensors as wrappers leave them: `_orig_mod.model.layers.0...`, `module.model...`.

torch.compile, DistributedDataParallel, FSDP, activation checkpointing and PEFT put a name of their
own before those of the modules that they wrap, and some scripts save it. Names are read without it,
and written with it.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping

from growth.huggingface.tensor_files import CheckpointFileError

# What may stand before any part of a name, and what before the whole of it.
_ANYWHERE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_AT_FRONT = (*_ANYWHERE, "module", "base_model.model")

_FRONT = re.compile(rf"^(?:(?:{'|'.join(map(re.escape, _AT_FRONT))})\.)+")
_INNER = re.compile(rf"(?<=\.)(?:{'|'.join(_ANYWHERE)})\.")


@dataclasses.dataclass(frozen=True)
class WrappedNames:
    """What the tensors of a checkpoint are called in its files.

    Attributes:
      plain: the names without those of wrappers, by the names in the files.
      patterns: how names are written in the files, by plain name; every number is a "#" in both,
        so that they hold for layers that are new.
    """

    plain: Mapping[str, str]
    patterns: Mapping[str, str]

    def in_files(self, name: str) -> str:
        """The name in files of a tensor of a plain name."""
        pattern = self.patterns.get(_pattern(name))
        if pattern is None:
            return name
        numbers = iter(re.findall(r"\d+", name))
        return re.sub("#", lambda _: next(numbers), pattern)

    @property
    def note(self) -> str:
        """What is not as one would expect, in a sentence; empty where no name is wrapped."""
        odd = next((name for name, plain in self.plain.items() if name != plain), None)
        if odd is None:
            return ""
        return (
            f"tensors have names of a wrapped module, such as {odd}: they are written alike, but "
            f"transformers finds this one as {self.plain[odd]} alone"
        )


def unwrap(names: Iterable[str]) -> WrappedNames:
    """Reads the names of the tensors of a checkpoint.

    Args:
      names: the names in its files.

    Raises:
      CheckpointFileError: two of them are the same but for wrappers, or layers are wrapped in
        different ways, so that nobody could say how a new one is.
    """
    plain: dict[str, str] = {}
    patterns: dict[str, str] = {}
    first: dict[str, str] = {}
    for name in names:
        short = _INNER.sub("", _FRONT.sub("", name))
        if short in first:
            raise CheckpointFileError(
                f"the files hold both {first[short]} and {name}, which are one tensor: remove one"
            )
        first[short] = name
        plain[name] = short
        pattern = patterns.setdefault(_pattern(short), _pattern(name))
        if pattern != _pattern(name):
            raise CheckpointFileError(
                f"{name} is wrapped in another way than in other layers, {pattern}: save the model "
                f"that is within the wrappers"
            )
    return WrappedNames(plain, patterns)


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "#", name)
