"""Config files: presets, which are inside the package, and a person's own."""

import difflib
import functools
import importlib.util
import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growth.errors import InputError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# The folder configs/ of the repository.
PRESETS = Path(__file__).parents[1] / "configs"


@functools.cache
def presets() -> tuple[str, ...]:
    """The names of the presets."""
    return tuple(sorted(path.stem for path in PRESETS.glob("*.py")))


def path_of(preset: str) -> Path:
    """The file of a preset."""
    return PRESETS / f"{preset}.py"


def load_config(text: str) -> "ConfigDict":
    """The config that a preset or a config file returns.

    Args:
      text: the name of a preset, or the path of a file; either maybe with `:ARGUMENT`, which its
        `get_config` is called with.

    Raises:
      InputError: there is no such preset or file, it has no `get_config` that takes the argument,
        or it refuses the argument.
    """
    name, colon, argument = text.partition(":")
    path = _find(name)
    spec = importlib.util.spec_from_file_location(f"growth_config_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    _run(path, spec.loader.exec_module, module)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise InputError(f"config {path} has no function get_config")
    arguments = (argument,) if colon else ()
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError as error:
        takes = "takes no argument after a colon" if arguments else "needs an argument, after a :"
        raise InputError(f"config is {text!r}, but {name} {takes}") from error
    return _run(path, get_config, *arguments)


def _run(path: Path, function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs code of a config file. Whatever is wrong in it is the file's, and is said in one line.

    A config refuses a value of another type than the field's default with a TypeError, for example.
    """
    try:
        return function(*arguments)
    except InputError:
        raise
    except SyntaxError as error:
        raise InputError(f"config {path}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        where = f"{path}, line {lines[-1]}" if lines else path
        words = " ".join(str(error).split())
        raise InputError(f"config {where}: {type(error).__name__}: {words}") from error


def _find(name: str) -> Path:
    known = f"presets are {', '.join(presets())}"
    if name in presets():
        return path_of(name)
    path = Path(name)
    if path.suffix != ".py" and len(path.parts) == 1:
        near = difflib.get_close_matches(name, presets(), 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(
            f"config is {name!r}, which is no preset and no path of a .py file; {hint}{known}"
        )
    if not path.is_file():
        raise InputError(f"config is {name!r}, but there is no such file; {known}")
    return path
