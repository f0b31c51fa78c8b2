"""Fields of a config from the command line: `--config.optimizer.learning_rate=3e-4`."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from growth.errors import InputError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)(?:=(.*))?", re.DOTALL)
_FLAG = re.compile(r"--?[a-zA-Z]")
_KINDS = {int: "a whole number", float: "a number", bool: "true or false"}


def split(arguments: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The arguments that are fields of a config, with their values, and all others."""
    overrides: list[str] = []
    others: list[str] = []
    place = others
    for argument in arguments:
        if _OVERRIDE.fullmatch(argument):
            overrides.append(argument)
            place = others if "=" in argument else overrides  # else its value follows
        elif _FLAG.match(argument):
            others.append(argument)
            place = others
        else:
            place.append(argument)
            place = others
    return tuple(overrides), tuple(others)


def override(config: "ConfigDict", arguments: Sequence[str]) -> None:
    """Sets fields of a config, in place.

    Args:
      config: the config.
      arguments: fields and values, as `split` gives them.

    Raises:
      InputError: a field is not there, or its value is of another type. The message has the
        nearest field that is there.
    """
    from absl import flags
    from ml_collections import config_flags

    for path, given in _by_field(arguments).items():
        old = _value(config, path)
        values = flags.FlagValues()
        try:
            config_flags.DEFINE_config_dict(
                "config", config, flag_values=values, sys_argv=["growth", *given]
            )
            _, *rest = values(["growth", *given])
        except (flags.Error, ValueError, TypeError) as error:
            raise InputError(_refusal(path, given[-1], old)) from error
        if rest:
            raise InputError(f"unexpected argument {rest[0]!r} after {given[0]}")


def _by_field(arguments: Sequence[str]) -> dict[str, list[str]]:
    """The arguments of each field, in the order in which fields are named last."""
    fields: dict[str, list[str]] = {}
    path = ""
    for argument in arguments:
        match = _OVERRIDE.fullmatch(argument)
        if match:
            path = match[1]
            fields[path] = fields.pop(path, [])
        fields[path].append(argument)
    return fields


def _value(config: Any, path: str) -> Any:
    """The value of a field of a config, such as `optimizer.learning_rate` or `growth[0].step`."""
    value, where = config, ""
    for key in re.findall(r"[^.\[\]]+|\[[^\]]*\]", path):
        if key.startswith("["):
            try:
                value = value[int(key[1:-1])]
            except (ValueError, TypeError, LookupError) as error:
                raise InputError(f"config.{path}: there is no {where}{key}") from error
            where += key
            continue
        if not isinstance(value, Mapping) and not hasattr(value, "keys"):
            raise InputError(f"config.{path}: {where} is {value!r}, which has no fields")
        if key not in value:
            raise InputError(_unknown(config, value, key, where))
        value, where = value[key], f"{where}.{key}" if where else key
    return value


def _unknown(config: Any, section: Any, key: str, where: str) -> str:
    """The message for a field that a section of a config does not have."""
    prefix = f"{where}." if where else ""
    near = difflib.get_close_matches(key, list(section), 1) or [
        name for name in section if "".join(word[:1] for word in name.split("_")) == key
    ]
    elsewhere = [
        f"{name}.{key}" for name, part in config.items() if hasattr(part, "keys") and key in part
    ]
    if near:
        hint = f"did you mean {prefix}{near[0]}?"
    elif elsewhere:
        hint = f"did you mean {elsewhere[0]}?"
    else:
        hint = f"{where or 'it'} has {', '.join(section)}"
    return f"unknown field of the config: {prefix}{key}; {hint}"


def _refusal(path: str, argument: str, old: Any) -> str:
    match = _OVERRIDE.fullmatch(argument)
    given = match[2] if match else argument
    if given is None:
        return f"config.{path} has no value: write --config.{path}=VALUE"
    if hasattr(old, "keys"):
        first = next(iter(old.keys()))
        return (
            f"config.{path} is {given!r}, but it is a section: set its fields, such as "
            f"--config.{path}.{first}"
        )
    kind = _KINDS.get(type(old), f"as {old!r}, of type {type(old).__name__}")
    return f"config.{path} is {given!r}, but it must be {kind}"
