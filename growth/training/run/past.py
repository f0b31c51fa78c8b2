"""What a resumed run may change: what is still to come, and nothing of what has been.

A checkpoint holds the config that it was trained with, and a digest of the data. A field that
decided what was trained until then must still be what it was; or config.json, the report and the
moments of what grew would tell of a run that never took place.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from growth.training.config import TrainConfig
from growth.training.config_sections import ConfigError

# Fields that decide what has been trained. `growth` and `num_steps` do so in part, and `data` does
# by what it names. All others concern what is still to come.
DECIDED = ("architecture", "initialize_from", "batch_size", "seed", "param_dtype")

# How long the values of a field may be in a message.
_LONGEST = 60


def require_same_past(
    config: TrainConfig, data: str, *, about: Mapping[str, Any], step: int, workdir: object
) -> tuple[str, ...]:
    """Compares a run with the checkpoint that it goes on from.

    Args:
      config: the run.
      data: the digest of its data.
      about: what the checkpoint says of itself: `config`, `data` and `stage`.
      step: optimizer steps taken.
      workdir: the run's directory, for the message.

    Returns:
      What differs and concerns what is still to come, in words, a field each.

    Raises:
      ConfigError: something differs that decided what has been trained; the message lists it.
    """
    saved, given = about["config"], _plain(config.to_dict())
    differing = dict(_differences(saved, given))
    past: dict[str, tuple[Any, Any]] = {}
    future: dict[str, tuple[Any, Any]] = {}
    for name, values in differing.items():
        section = name.split(".")[0]
        is_past = section in DECIDED or (section == "data" and data != about["data"])
        if section == "growth":
            is_past = _rewrites_growth(*values, about["stage"], step)
        elif section == "num_steps":
            is_past = config.num_steps < step
        (past if is_past else future)[name] = values
    if data != about["data"] and not any(name.startswith("data.") for name in past):
        past["data"] = ("the text or images that it names", "others")
    if past:
        raise ConfigError(
            f"workdir {workdir} holds a run that has taken {step} steps, and what decided them "
            f"cannot change: {_listed(past)}. Give what it was trained with, or another workdir"
        )
    return tuple(f"{name} {_shown(old)} → {_shown(new)}" for name, (old, new) in future.items())


def _rewrites_growth(old: list[Any], new: list[Any], stage: int, step: int) -> bool:
    """Whether a schedule differs in growth steps that have been, or has one where it is over."""
    return new[:stage] != old[:stage] or any(entry["step"] < step for entry in new[stage:])


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], where: str = ""
) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """The fields, also of sections, that two configs differ in, with what they have there."""
    for name in dict.fromkeys((*old, *new)):
        there, here = old.get(name), new.get(name)
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            yield from _differences(there, here, where=f"{where}{name}.")
        elif there != here:
            yield f"{where}{name}", (there, here)


def _listed(differing: Mapping[str, tuple[Any, Any]]) -> str:
    return "; ".join(
        f"{n} was {_shown(old)}, is {_shown(new)}" for n, (old, new) in differing.items()
    )


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) and value else repr(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(value))
