"""`config.json` as an `Architecture`, and back.

What a family's config cannot say is not listed anywhere: a config that is written is read back, and
must say what was meant.
"""

import dataclasses
import math
from collections.abc import Collection
from typing import Any

from growth.architecture import Architecture
from growth.huggingface import config_keys, head_width, rotary_config, transformers_config
from growth.huggingface.config_keys import FamilyError
from growth.huggingface.family import Config, Family, Limits
from growth.rules.growth_plan import GrowthError


def check_config(config: Config, family: Family, ignored: Collection[str] = ()) -> None:
    """Refuses a config with keys that growth does not know, or with values of another kind.

    Args:
      config: what `config.json` says.
      family: that of its model_type.
      ignored: keys that change nothing that is computed, because somebody says so.

    Raises:
      FamilyError: it has; the message names them.
    """
    config_keys.check_kinds(config, family.kinds)
    rotary = family.rotary_names
    unchanging = {**config_keys.UNCHANGING, **family.unchanging_keys}
    if rotary is not None and not rotary.fraction:
        unchanging["partial_rotary_factor"] = (1, 1.0)
    config_keys.check_known(
        config,
        read=family.keys | config_keys.IRRELEVANT | set(family.irrelevant_keys),
        unchanging=unchanging,
        ignored=ignored,
        model_type=family.model_type,
    )
    if rotary is not None:
        rotary_config.check_tables(config, rotary, ignored, family.model_type)


def with_defaults(config: Config, family: Family) -> dict[str, Any]:
    """A config that also says what it leaves to the defaults of its family.

    It has nothing but the keys that the family reads, so that none is read that is not checked.
    """
    said = {key: value for key, value in config.items() if key in family.keys}
    return {**family.defaults, **_without_aliases(said, family)}


def _without_aliases(config: Config, family: Family) -> dict[str, Any]:
    """A config in which keys say what their aliases say."""
    named = {key: config[alias] for alias, key in family.aliases.items() if alias in config}
    return {**config, **named}


def read_config(config: Config, family: Family) -> Architecture:
    """The architecture that a config says.

    Args:
      config: what `config.json` says.
      family: that of its model_type.

    Raises:
      FamilyError: a field is missing, or says what growth does not know.
      ArchitectureError: a field is out of range.
    """
    config = with_defaults(config, family)
    try:
        sizes = _sizes(config, family)
        if family.rotary_names is not None:
            sizes |= rotary_config.rotary_fields(config, family.rotary_names, sizes["qk_dim"])
        return Architecture(**sizes | family.fields(config))
    except KeyError as error:
        raise FamilyError(f"config.json has no {error.args[0]!r}") from error


def limits_of(config: Config, family: Family) -> Limits:
    """What cannot be done with a model, and why."""
    limits = family.limits(with_defaults(config, family))
    kind = None if family.rotary_names is None else rotary_config.unusual_type(config)
    if kind is None:
        return limits
    unusual = f"rope_type is {kind!r}"
    reason = f"{unusual}, whose frequencies depend on the width of a head in other ways"
    return Limits({"qk_dim": reason, **limits.growth}, limits.reference_model or unusual)


def grown_config(config: Config, family: Family, target: Architecture) -> dict[str, Any]:
    """The config of a larger model.

    Args:
      config: that of the smaller one.
      family: that of both.
      target: what the larger one is.

    Raises:
      GrowthError: a config of this family cannot say that; with the nearest ones that it can.
    """
    source, shape = read_config(config, family), target.layers[0]
    config = _without_aliases(config, family)
    # What is not said follows from other sizes. It must be said where it does not any more.
    implied: dict[str, Any] = dict(
        num_kv_heads=shape.num_heads, head_dim=target.embed_dim / shape.num_heads
    )
    if target.embed_dim == source.embed_dim:
        implied["mlp_dim"] = source.mlp_dim
    grown = {key: value for key, value in config.items() if key != "transformers_weights"}
    for field, name in family.config_names.items():
        size = "qk_dim" if field == "head_dim" else field
        is_said = config.get(name) is not None
        before = getattr(source, size) if is_said else implied.get(field)
        if getattr(target, size) != before:
            grown[name] = getattr(target, size)
    for name, other in family.repeated_names.items():
        if name in config and config[name] == config.get(other):
            grown[name] = grown[other]
    for alias, name in family.aliases.items():
        if alias in config:
            grown[alias] = grown[name]
    if family.heads_are_tied and config.get("head_dim") is not None:
        grown["head_dim"] = shape.qk_dim
    if family.rotary_names is not None and shape.qk_dim != source.layers[0].qk_dim:
        grown = rotary_config.with_rotary(grown, family.rotary_names, target)
    if target.num_layers != source.num_layers:
        _check_lists_by_layer(config, family, source.num_layers)
        if family.lists_layer_types:
            grown["layer_types"] = _layer_types(target)
    _read_back(grown, family, target)
    return grown


def new_config(architecture: Architecture, family: Family, besides: Config) -> dict[str, Any]:
    """The config of a model that was never of Hugging Face.

    Args:
      architecture: what the model is.
      family: that of the config.
      besides: what it says besides sizes, positions and the defaults.

    Raises:
      GrowthError: a config of this family cannot say that.
    """
    shape, rotary = architecture.layers[0], family.rotary_names
    config = dict(family.defaults)
    config |= dict(model_type=family.model_type, architectures=[family.model_class])
    config |= dict(tie_word_embeddings=architecture.tied_embeddings) | dict(besides)
    for field, name in family.config_names.items():
        value = shape.qk_dim if field == "head_dim" else getattr(architecture, field)
        config[name] = value
    if rotary is not None:
        config[rotary.theta[0]] = shape.rope_theta
        if rotary.fraction:
            turned = architecture.rotary_dim or shape.qk_dim
            config[rotary.fraction[0]] = rotary_config.turned_fraction(turned, shape.qk_dim)
    if "sliding_window" in family.defaults:
        windows = [layer.window for layer in architecture.layers if layer.window]
        config["sliding_window"] = max(windows, default=None)
    if family.lists_layer_types:
        config["layer_types"] = _layer_types(architecture)
    _read_back(config, family, architecture)
    return config


def with_dtype(config: Config, dtype: str) -> dict[str, Any]:
    """A config that says a dtype of its tensors, under all names that it has for it."""
    names = [name for name in ("dtype", "torch_dtype") if name in config] or ["dtype"]
    return {**config, **dict.fromkeys(names, dtype)}


def _sizes(config: Config, family: Family) -> dict[str, Any]:
    names = family.config_names
    sizes: dict[str, Any] = {field: config.get(name) for field, name in names.items()}
    for field in ("vocab_size", "max_length", "embed_dim", "num_layers", "num_heads"):
        sizes[field] = config[names[field]]
    head_dim = sizes.pop("head_dim", None)
    if head_dim is None:
        embed_dim, num_heads = sizes["embed_dim"], sizes["num_heads"]
        head_dim = head_width.implied_head_dim(family.model_type, embed_dim, num_heads)
        if config.get("head_dim") not in (None, head_dim):
            raise FamilyError(
                f"config.json says head_dim {config['head_dim']}, but heads of a "
                f"{family.model_type} are embed_dim / num_heads wide, {head_dim}"
            )
    sizes |= dict(qk_dim=head_dim, v_dim=head_dim)
    if "norm_eps" in names:
        sizes["norm_eps"] = config[names["norm_eps"]]
    if sizes["mlp_dim"] is None:
        del sizes["mlp_dim"]  # then it is one of the fields
    return sizes


def _read_back(written: Config, family: Family, target: Architecture) -> None:
    """Refuses a target that a config does not say."""
    if family.heads_are_tied:
        head_width.check_tied_heads(family.model_type, target)
    elif family.heads_must_divide:
        head_width.check_heads_divide(family.model_type, target)
    problem = family.load_problem(with_defaults(written, family))
    problem = problem or transformers_config.load_problem(written)
    if problem is not None:
        raise GrowthError(f"transformers would not load the config.json to be written: {problem}")
    read = read_config(written, family)
    for field in dataclasses.fields(Architecture):
        wanted, found = getattr(target, field.name), getattr(read, field.name)
        if wanted == found or (field.name == "rope_theta" and _is_close(wanted, found)):
            continue
        reason = "the config has no field for it"
        if field.name == "v_dim":
            reason = "queries, keys and values of a head have one width: give head_dim"
        raise GrowthError(
            f"{field.name} would have to be {wanted}, but a config of {family.model_type} would "
            f"say {found}: {reason}"
        )


def _check_lists_by_layer(config: Config, family: Family, num_layers: int) -> None:
    """Refuses lists with an entry for each layer, which nobody here knows how to grow."""
    known = family.keys | config_keys.IRRELEVANT | set(family.irrelevant_keys)
    for key, value in config.items():
        if key not in known and isinstance(value, list) and len(value) == num_layers:
            raise GrowthError(
                f"num_layers cannot grow: config.json says {key}, a list with an entry for each "
                f"of the {num_layers} layers, and what new layers have there is not known"
            )


def _layer_types(architecture: Architecture) -> list[str]:
    windows = [layer.window for layer in architecture.layers]
    return ["full_attention" if w is None else "sliding_attention" for w in windows]


def _is_close(a: float | tuple[float, ...], b: float | tuple[float, ...]) -> bool:
    return not isinstance(a, tuple) and not isinstance(b, tuple) and math.isclose(a, b)
