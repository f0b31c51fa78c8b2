"""Rotary positions in `config.json`, read with the precedence that transformers gives its places.

They stand in a table, `rope_parameters` since transformers 5 and `rope_scaling` before, and in
fields beside it. A file may have them in several places, with different values, and then these
count:

- the table is `rope_scaling`, unless that is empty;
- base and turned fraction are those of the table, else those beside it;
- of the two names of the type, `rope_type` is read before `type`;
- the original length is that beside the table, else that of the table, else the longest sequence.

Also what growth of queries and keys makes of them, a larger base or a smaller turned fraction,
which is written in all places that say it.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

from growth.architecture import Architecture
from growth.architecture.rope_scaling import RopeScaling
from growth.huggingface import config_keys
from growth.huggingface.config_keys import FamilyError, Kind
from growth.rules.growth_plan import GrowthError

# The largest base that transformers, which computes frequencies in float32, can hold.
_LARGEST_THETA = 3.4e38

# The tables, that which counts first.
TABLES = ("rope_scaling", "rope_parameters")

_LENGTH = "original_max_position_embeddings"

# What a table says.
_KINDS: Mapping[str, Kind] = {
    "rope_type": config_keys.WORD,
    "type": config_keys.WORD,
    "rope_theta": config_keys.POSITIVE,
    "partial_rotary_factor": config_keys.SHARE,
    "factor": config_keys.FACTOR.or_none(),
    "low_freq_factor": config_keys.POSITIVE,
    "high_freq_factor": config_keys.POSITIVE,
    _LENGTH: config_keys.COUNT,
}
# What tables of other types say, which are carried as they are.
_OF_OTHER_TYPES = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
                   "truncate", "short_factor", "long_factor")  # fmt: skip

_SAID_BY_ARCHITECTURE = ("default", "linear", "llama3")
_OTHER_TYPES = ("dynamic", "yarn", "longrope", "su")


@dataclasses.dataclass(frozen=True)
class RotaryNames:
    """What a family calls base and turned fraction beside the table.

    Attributes:
      theta: the names of the base; the first is read, others repeat it.
      fraction: the same of the turned fraction of a head; none where heads are turned whole.
      default_theta: the base where nothing is said.
      default_fraction: the fraction where nothing is said.
    """

    theta: tuple[str, ...] = ("rope_theta",)
    fraction: tuple[str, ...] = ()
    default_theta: float = 10000.0
    default_fraction: float = 1.0

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys that say rotary positions."""
        return (*TABLES, *self.theta, *self.fraction, _LENGTH)

    def beside(self, field: str) -> tuple[str, ...]:
        """The names of a field of a table where it stands beside it."""
        return {"rope_theta": self.theta, "partial_rotary_factor": self.fraction}[field]


USUAL_ROTARY_NAMES = RotaryNames()


def check_tables(
    config: Mapping[str, Any], names: RotaryNames, ignored: Collection[str], model_type: str
) -> None:
    """Refuses tables that say what growth does not know.

    Args:
      config: what `config.json` says, of which the tables are objects.
      names: those of the family.
      ignored: keys that are passed over, as `rope_scaling.KEY`.
      model_type: the family, for messages.

    Raises:
      FamilyError: a value is of another kind, or a key or a type is not known.
    """
    whole = {} if names.fraction else {"partial_rotary_factor": (1, 1.0)}
    for name in TABLES:
        table, within = config.get(name) or {}, f"{name}."
        config_keys.check_kinds(table, _KINDS, within)
        config_keys.check_known(
            table,
            read=(_KINDS.keys() - whole.keys()) | set(_OF_OTHER_TYPES),
            unchanging={f"{within}{key}": values for key, values in whole.items()},
            ignored=ignored,
            model_type=model_type,
            within=within,
        )
    kind = _kind(_table(config))
    known = _SAID_BY_ARCHITECTURE + _OTHER_TYPES
    if kind not in known:
        raise FamilyError(
            f"config.json says rope_type {config_keys.shown(kind)}, but known are "
            f"{', '.join(known)}"
        )


def rotary_fields(config: Mapping[str, Any], names: RotaryNames, head_dim: int) -> dict[str, Any]:
    """The fields of an architecture that say its rotary positions."""
    found: dict[str, Any] = dict(
        position="rope",
        rope_theta=_read(config, names, "rope_theta", names.default_theta),
        rope_scaling=_scaling(config),
    )
    if names.fraction:
        share = _read(config, names, "partial_rotary_factor", names.default_fraction)
        if share < 1:
            found["rotary_dim"] = int(head_dim * share)
    return found


def unusual_type(config: Mapping[str, Any]) -> str | None:
    """The type of rotary positions, where an architecture cannot say it (yarn, dynamic, longrope).

    Their frequencies depend on the width of a head in other ways.
    """
    kind = _kind(_table(config))
    return None if kind in _SAID_BY_ARCHITECTURE else kind


def with_rotary(
    config: Mapping[str, Any], names: RotaryNames, target: Architecture
) -> dict[str, Any]:
    """A config with the rotary positions of an architecture of other heads."""
    if target.rotary_dim is not None:
        share = turned_fraction(target.rotary_dim, target.layers[0].qk_dim)
        return _write(config, names, "partial_rotary_factor", share)
    if not isinstance(target.rope_theta, float) or target.rope_theta > _LARGEST_THETA:
        raise GrowthError(
            f"rope_theta would have to be {target.rope_theta}, but transformers computes with "
            f"it in float32, which ends at {_LARGEST_THETA}: head_dim must stay smaller"
        )
    return _write(config, names, "rope_theta", target.rope_theta)


def turned_fraction(turned: int, width: int) -> float:
    """A fraction of which int(width * fraction), as transformers computes it, is `turned`."""
    share = turned / width
    while int(width * share) < turned:
        share = math.nextafter(share, 1)
    return share


def _table(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return next((config[name] for name in TABLES if config.get(name)), {})


def _kind(table: Mapping[str, Any]) -> str:
    return table.get("rope_type", table.get("type", "default"))


def _read(config: Mapping[str, Any], names: RotaryNames, field: str, default: float) -> float:
    return _table(config).get(field, config.get(names.beside(field)[0], default))


def _write(
    config: Mapping[str, Any], names: RotaryNames, field: str, value: float
) -> dict[str, Any]:
    """A config that says a value wherever it said one, and where it is read."""
    grown = dict(config)
    for name in names.beside(field):
        if name in config:
            grown[name] = value
    for name in TABLES:
        if field in (config.get(name) or {}):
            grown[name] = {**config[name], field: value}
    if field in _table(grown):
        return grown
    if config.get("rope_parameters") and not config.get("rope_scaling"):
        grown["rope_parameters"] = {**config["rope_parameters"], field: value}
    else:
        grown[names.beside(field)[0]] = value
    return grown


def _scaling(config: Mapping[str, Any]) -> RopeScaling | None:
    table = _table(config)
    kind = _kind(table)
    if kind not in ("linear", "llama3"):
        return None
    needed = ["factor", *("low_freq_factor", "high_freq_factor") * (kind == "llama3")]
    for field in needed:
        if table.get(field) is None:
            raise FamilyError(f"config.json says rope_type {kind!r}, but has no {field}")
    if kind == "linear":
        return RopeScaling("linear", table["factor"])
    inside = table.get(_LENGTH, config.get("max_position_embeddings"))
    length = config.get(_LENGTH, inside)
    factor, low, high = (table[field] for field in needed)
    return RopeScaling("llama3", factor, low, high, length)
