"""`Family`: what the models of a family of Hugging Face have in common, as data.

A family is a table of tensors, with the role and the axes of each and where the reference model has
the same numbers, and what its `config.json` calls the fields of an `Architecture`.
`growth.huggingface.config_map` reads and writes configs by it.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

from growth.architecture.cost import NO_EXTRA_PARTS, ExtraParts
from growth.blueprints.blueprint import Blueprint
from growth.huggingface import config_keys
from growth.huggingface.rotary_config import USUAL_ROTARY_NAMES, RotaryNames

# What `config.json` says.
Config = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class TensorRule:
    """A tensor, or one for each layer, expert, ...

    Attributes:
      path: its name, as the path of a rule of a blueprint.
      role: its role, or roles, as there.
      axes: its axes, as there.
      reference: where the reference model has it: a path for each role; empty where it has not. A
        checkpoint has a tensor if the reference model of its architecture has it.
      skipped: how many of its first rows the reference model has not.
    """

    path: str
    role: str | tuple[str, ...]
    axes: str
    reference: tuple[str, ...] = ()
    skipped: int = 0


@dataclasses.dataclass(frozen=True)
class Limits:
    """What cannot be done with a model, and why.

    Attributes:
      growth: why a size cannot grow exactly, by the field of `Architecture`.
      reference_model: why the reference model does not compute what this model does; None if it
        does.
    """

    growth: Mapping[str, str] = dataclasses.field(default_factory=dict)
    reference_model: str | None = None


# The fields of an architecture that are numbers of the config, and their usual names there.
USUAL_NAMES = dict(
    vocab_size="vocab_size",
    max_length="max_position_embeddings",
    embed_dim="hidden_size",
    num_layers="num_hidden_layers",
    num_heads="num_attention_heads",
    num_kv_heads="num_key_value_heads",
    head_dim="head_dim",
    mlp_dim="intermediate_size",
    norm_eps="rms_norm_eps",
)


def _loads(config: Config) -> str | None:
    return None


def _no_limits(config: Config) -> Limits:
    return Limits()


def _no_extra_parts(config: Config) -> ExtraParts:
    return NO_EXTRA_PARTS


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
      model_type: its name in `config.json`.
      model_class: the class of its models in transformers.
      tensors: all tensors that its models may have.
      fields: the fields of an architecture that a config implies, apart from sizes and rotary
        positions. Like all functions here it is given a config in which defaults are filled in.
      config_names: the config's names of sizes and epsilon, by the field's. Where there is none, a
        head is embed_dim / num_heads wide, every head has its own keys, epsilon is one of `fields`.
      defaults: what a config says that does not say it.
      rotary_names: how the config says rotary positions; None where there are none.
      other_keys: keys that are read besides those named here and those that have a default.
      irrelevant_keys: keys that change nothing that is computed, besides those of any family.
      unchanging_keys: keys that change nothing where they say one of these values.
      aliases: other names of keys; where a config has both, transformers takes what they say.
      repeated_names: names of the config that say what another one says, where they do.
      lists_layer_types: whether a config may list the attention of each layer.
      heads_must_divide: whether transformers refuses an embed_dim that is no multiple of num_heads.
      load_problem: why transformers does not load a given config, in words; None if it does. For
        rules of one family alone.
      variant: the family of a given config, where models of one type have tables that differ.
      limits: what cannot be done with a model of a given config, apart from its rotary positions.
      extra_parts: what a model of a given config has besides its architecture, for what it costs.
      prefix: what the names of tensors begin with, unless the base model was saved alone.
      buffers: a pattern of tensors that are no parameters, and are computed anew by transformers.
      init_std_name: the config's name for the standard deviation of the initializer.
    """

    model_type: str
    model_class: str
    tensors: tuple[TensorRule, ...]
    fields: Callable[[Config], dict[str, Any]]
    config_names: Mapping[str, str] = dataclasses.field(default_factory=lambda: USUAL_NAMES)
    defaults: Config = dataclasses.field(default_factory=dict)
    rotary_names: RotaryNames | None = USUAL_ROTARY_NAMES
    other_keys: tuple[str, ...] = ()
    irrelevant_keys: tuple[str, ...] = ()
    unchanging_keys: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    repeated_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    lists_layer_types: bool = False
    heads_must_divide: bool = False
    load_problem: Callable[[Config], str | None] = _loads
    variant: Callable[[Config], "Family"] | None = None
    limits: Callable[[Config], Limits] = _no_limits
    extra_parts: Callable[[Config], ExtraParts] = _no_extra_parts
    prefix: str = "model."
    buffers: str = r".*rotary_emb\.inv_freq"
    init_std_name: str = "initializer_range"

    @functools.cached_property
    def blueprint(self) -> Blueprint:
        """What the tensors are."""
        return Blueprint(tuple((t.path, t.role, t.axes) for t in self.tensors))

    @functools.cached_property
    def keys(self) -> frozenset[str]:
        """The keys of a config that are read."""
        named = {*self.config_names.values(), *self.defaults, *self.other_keys, *self.aliases}
        listed = {"layer_types"} if self.lists_layer_types else set()
        rotary = () if self.rotary_names is None else self.rotary_names.keys
        # Heads of a width that follows may say it nonetheless.
        follows = {"head_dim", self.init_std_name, *self.repeated_names}
        return frozenset({*config_keys.GENERAL, *named, *listed, *rotary, *follows})

    @property
    def kinds(self) -> dict[str, config_keys.Kind]:
        """What each of them may say."""
        return {key: config_keys.KINDS[self.aliases.get(key, key)] for key in sorted(self.keys)}

    @property
    def body_class(self) -> str:
        """The class in transformers of its models without an output layer."""
        return re.sub("(ForCausalLM|LMHeadModel)$", "Model", self.model_class)

    @property
    def heads_are_tied(self) -> bool:
        """Whether a head is always embed_dim / num_heads wide."""
        return "head_dim" not in self.config_names
