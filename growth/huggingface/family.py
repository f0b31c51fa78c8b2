"""`Family`: how a family of Hugging Face models maps to growth, as data.

A family is a table of tensors, with the role and the axes of each and where the reference model has
the same numbers, and a map between `config.json` and `Architecture`. What a family's config cannot
say is not listed anywhere: a grown config is read back, and must say what was meant.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

from growth.architecture import Architecture
from growth.blueprints.blueprint import Blueprint
from growth.errors import InputError
from growth.huggingface import rotary, tied
from growth.rules.growth_plan import GrowthError

Config = Mapping[str, Any]


class FamilyError(InputError):
    """A model's family or its config is not known to growth; the message says what is."""


@dataclasses.dataclass(frozen=True)
class Tensor:
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


def _no_limits(config: Config) -> dict[str, str]:
    return {}


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
      model_type: its name in `config.json`.
      kind: the class of its models in transformers.
      tensors: all tensors that its models may have.
      fields: the fields of an architecture that a config implies, apart from sizes and rotary
        positions. It is given a config in which defaults are filled in.
      names: the config's names of sizes and epsilon, by the field's. Where there is none, a head is
        embed_dim / num_heads wide, every head has its own keys, epsilon is one of `fields`.
      defaults: what a config says that does not say it.
      rope: how the config says rotary positions; None where there are none.
      repeats: names of the config that say what another one says, where they do.
      layer_types: whether a config may list the attention of each layer.
      heads_divide: whether transformers refuses an embed_dim that is no multiple of num_heads.
      variant: the family of a given config, where models of one type have tables that differ.
      limits: what cannot grow in a model of a given config, as (field, reason). The field
        "reference" means that the reference model does not compute it.
      prefix: what the names of tensors begin with, unless the base model was saved alone.
      buffers: a pattern of tensors that are no parameters, and are computed anew by transformers.
      deviation: the config's name for the standard deviation of the initializer.
    """

    model_type: str
    kind: str
    tensors: tuple[Tensor, ...]
    fields: Callable[[Config], dict[str, Any]]
    names: Mapping[str, str] = dataclasses.field(default_factory=lambda: USUAL_NAMES)
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rope: rotary.Names | None = rotary.USUAL
    repeats: Mapping[str, str] = dataclasses.field(default_factory=dict)
    layer_types: bool = False
    heads_divide: bool = False
    variant: Callable[[Config], "Family"] | None = None
    limits: Callable[[Config], Mapping[str, str]] = _no_limits
    prefix: str = "model."
    buffers: str = r".*rotary_emb\.inv_freq"
    deviation: str = "initializer_range"

    @functools.cached_property
    def blueprint(self) -> Blueprint:
        """What the tensors are."""
        return Blueprint(tuple((t.path, t.role, t.axes) for t in self.tensors))

    @property
    def heads_are_tied(self) -> bool:
        """Whether a head is always embed_dim / num_heads wide."""
        return "head_dim" not in self.names

    def architecture(self, config: Config) -> Architecture:
        """The architecture that a config says.

        Raises:
          FamilyError: a field is missing, or says what growth does not know.
          ArchitectureError: a field is out of range.
        """
        config = {**self.defaults, **config}
        try:
            sizes = self._sizes(config)
            if self.rope is not None:
                sizes |= rotary.fields(config, self.rope, sizes["qk_dim"])
            return Architecture(**sizes | self.fields(config))
        except KeyError as error:
            raise FamilyError(f"config.json has no {error.args[0]!r}") from error

    def grown_config(self, config: Config, target: Architecture) -> dict[str, Any]:
        """The config of a larger model.

        Args:
          config: that of the smaller one.
          target: what the larger one is.

        Raises:
          GrowthError: a config of this family cannot say that; with the nearest ones that it can.
        """
        source, shape = self.architecture(config), target.layers[0]
        # What is not said follows from other sizes. It must be said where it does not any more.
        follows: dict[str, Any] = dict(
            num_kv_heads=shape.num_heads, head_dim=target.embed_dim / shape.num_heads
        )
        if target.embed_dim == source.embed_dim:
            follows["mlp_dim"] = source.mlp_dim
        grown = dict(config)
        for field, name in self.names.items():
            size = "qk_dim" if field == "head_dim" else field
            is_said = config.get(name) is not None
            before = getattr(source, size) if is_said else follows.get(field)
            if getattr(target, size) != before:
                grown[name] = getattr(target, size)
        for name, other in self.repeats.items():
            if name in config and config[name] == config.get(other):
                grown[name] = grown[other]
        if self.rope is not None and shape.qk_dim != source.layers[0].qk_dim:
            grown = rotary.written(grown, self.rope, target)
        if self.layer_types and target.num_layers != source.num_layers:
            grown["layer_types"] = _layer_types(target)
        self._read_back(grown, target)
        return grown

    def new_config(self, architecture: Architecture, said: Config) -> dict[str, Any]:
        """The config of a model that was never of Hugging Face.

        Args:
          architecture: what the model is.
          said: what it says besides sizes, positions and the defaults.

        Raises:
          GrowthError: a config of this family cannot say that.
        """
        shape = architecture.layers[0]
        config = dict(self.defaults) | dict(model_type=self.model_type, architectures=[self.kind])
        config |= dict(tie_word_embeddings=architecture.tied_embeddings) | dict(said)
        for field, name in self.names.items():
            value = shape.qk_dim if field == "head_dim" else getattr(architecture, field)
            config[name] = value
        if self.rope is not None:
            config[self.rope.theta] = shape.rope_theta
            if self.rope.fraction is not None:
                turned = architecture.rotary_dim or shape.qk_dim
                config[self.rope.fraction] = rotary.fraction(turned, shape.qk_dim)
        if "sliding_window" in self.defaults:
            windows = [layer.window for layer in architecture.layers if layer.window]
            config["sliding_window"] = max(windows, default=None)
        if self.layer_types:
            config["layer_types"] = _layer_types(architecture)
        self._read_back(config, architecture)
        return config

    def _sizes(self, config: Config) -> dict[str, Any]:
        sizes: dict[str, Any] = {field: config.get(name) for field, name in self.names.items()}
        for field in ("vocab_size", "max_length", "embed_dim", "num_layers", "num_heads"):
            sizes[field] = config[self.names[field]]
        head_dim = sizes.pop("head_dim", None)
        if not head_dim:
            head_dim = tied.head_dim(self.model_type, sizes["embed_dim"], sizes["num_heads"])
        sizes |= dict(qk_dim=head_dim, v_dim=head_dim)
        if "norm_eps" in self.names:
            sizes["norm_eps"] = config[self.names["norm_eps"]]
        if sizes["mlp_dim"] is None:
            del sizes["mlp_dim"]  # then it is one of the fields
        return sizes

    def _read_back(self, grown: Config, target: Architecture) -> None:
        """Refuses a target that a grown config does not say."""
        if self.heads_are_tied:
            tied.check(self.model_type, target)
        elif self.heads_divide:
            tied.check_divides(self.model_type, target)
        said = self.architecture(grown)
        for field in dataclasses.fields(Architecture):
            wanted, found = getattr(target, field.name), getattr(said, field.name)
            if wanted == found or (field.name == "rope_theta" and _close(wanted, found)):
                continue
            reason = "the config has no field for it"
            if field.name == "v_dim":
                reason = "queries, keys and values of a head have one width: give head_dim"
            raise GrowthError(
                f"{field.name} would have to be {wanted}, but a config of {self.model_type} would "
                f"say {found}: {reason}"
            )


def _layer_types(architecture: Architecture) -> list[str]:
    windows = [layer.window for layer in architecture.layers]
    return ["full_attention" if w is None else "sliding_attention" for w in windows]


def _close(a: Any, b: Any) -> bool:
    return not isinstance(a, tuple) and not isinstance(b, tuple) and math.isclose(a, b)
