"""Rotary positions in `config.json`: in one table since transformers 5, in single fields before.

Also what growth of queries and keys makes of them: a larger base, or a smaller turned fraction.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from growth.architecture import Architecture
from growth.architecture.rope_scaling import RopeScaling
from growth.rules.growth_plan import GrowthError

# The largest base that transformers, which computes frequencies in float32, can hold.
_LARGEST_THETA = 3.4e38


@dataclasses.dataclass(frozen=True)
class RotaryNames:
    """The names that a family had before there was a table.

    Attributes:
      theta: of the base.
      fraction: of the turned fraction of a head; None where heads are turned whole.
      default_fraction: the fraction where nothing is said.
    """

    theta: str = "rope_theta"
    fraction: str | None = None
    default_fraction: float = 1.0


USUAL_ROTARY_NAMES = RotaryNames()


def rotary_fields(config: Mapping[str, Any], names: RotaryNames, head_dim: int) -> dict[str, Any]:
    """The fields of an architecture that say its rotary positions."""
    table = config.get("rope_parameters") or {}
    theta = table.get("rope_theta", config.get(names.theta, 10000.0))
    found: dict[str, Any] = dict(position="rope", rope_theta=theta, rope_scaling=_scaling(config))
    if names.fraction is not None:
        share = table.get("partial_rotary_factor", config.get(names.fraction))
        share = names.default_fraction if share is None else share
        if share < 1:
            found["rotary_dim"] = int(head_dim * share)
    return found


def unusual_type(config: Mapping[str, Any]) -> str | None:
    """The type of rotary positions, where an architecture cannot say it (yarn, dynamic, longrope).

    Their frequencies depend on the width of a head in other ways.
    """
    kind = _kind(_table(config))
    return None if kind in ("default", "linear", "llama3") else kind


def with_rotary(
    config: Mapping[str, Any], names: RotaryNames, target: Architecture
) -> dict[str, Any]:
    """A config with the rotary positions of an architecture of other heads."""
    grown = dict(config)
    if target.rotary_dim is None:
        changes = {"rope_theta": target.rope_theta}
        if not isinstance(target.rope_theta, float) or target.rope_theta > _LARGEST_THETA:
            raise GrowthError(
                f"rope_theta would have to be {target.rope_theta}, but transformers computes with "
                f"it in float32, which ends at {_LARGEST_THETA}: head_dim must stay smaller"
            )
    else:
        changes = {
            "partial_rotary_factor": turned_fraction(target.rotary_dim, target.layers[0].qk_dim)
        }
    old_names = {"rope_theta": names.theta, "partial_rotary_factor": names.fraction}
    table = config.get("rope_parameters")
    for name, value in changes.items():
        old_name = old_names[name]
        if table is None or old_name in config:
            grown[str(old_name)] = value
    if table is not None:
        grown["rope_parameters"] = {**table, **changes}
    return grown


def turned_fraction(turned: int, width: int) -> float:
    """A fraction of which int(width * fraction), as transformers computes it, is `turned`."""
    share = turned / width
    while int(width * share) < turned:
        share = math.nextafter(share, 1)
    return share


def _table(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def _kind(table: Mapping[str, Any]) -> str:
    return table.get("rope_type") or table.get("type") or "default"


def _scaling(config: Mapping[str, Any]) -> RopeScaling | None:
    table = _table(config)
    kind = _kind(table)
    if kind == "linear":
        return RopeScaling("linear", table["factor"])
    if kind != "llama3":
        return None
    return RopeScaling(
        "llama3",
        table["factor"],
        table["low_freq_factor"],
        table["high_freq_factor"],
        table["original_max_position_embeddings"],
    )
