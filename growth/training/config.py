"""What a run is: frozen dataclasses, parsed from a config at the boundary.

A config file builds an `ml_collections.ConfigDict` from `defaults()`, so that every field can be
set from the command line; `parse` makes a `TrainConfig` of it. Nothing behind it sees a mapping.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Annotated, Any

import ml_collections
from annotated_types import doc
from ml_collections.config_dict import placeholder

from growth.architecture import Architecture
from growth.architecture.validation import shown
from growth.training.config_sections import (
    ConfigError,
    MeshConfig,
    OptimizerConfig,
    SamplesConfig,
)
from growth.training.data.config import DataConfig
from growth.training.fields import (
    Count,
    Dtype,
    Flag,
    Mappings,
    Positive,
    Seed,
    Text,
    check_fields,
    number_type,
    plain_value,
)
from growth.training.schedule import Stage, flops_spent, rise_steps, stages, training_flops


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A run.

    Attributes:
      architecture: what the run starts with.
      growth: the growth schedule, as `growth.training.schedule.stages` takes it.
      initialize_from: a checkpoint of Hugging Face whose parameters the run starts with; "" for
        the model's own initializer.
      num_steps: optimizer steps of the whole run.
      batch_size: sequences of `architecture.max_length` tokens in a step, over all devices.
      seed: decides the initialization, the order of the data, and the free values of growth.
      dtype: dtype of the computation, "float32" or "bfloat16".
      param_dtype: dtype of the parameters and the optimizer state.
      remat: whether activations are computed anew in the backward pass, to save memory.
      data, optimizer, mesh, samples: see there.
      certify: whether each growth is certified, by `growth.certify` on a batch of the evaluation
        set; certificates are written to the run's directory, and a promise that is broken ends the
        run, whatever `growth_tolerance` is.
      growth_tolerance: how far a growth may move logits in float32, relative to the largest logit;
        one that moves them further ends the run before it. None: as far as growth promises for
        `param_dtype`.
      eval_every: steps between evaluations; there is one at the end of every stage in any case.
      eval_batches: batches of an evaluation.
      checkpoint_every: steps between checkpoints; the end of every stage is kept in any case.
      checkpoints_kept: how many of the newest checkpoints are kept.
      log_every: steps between lines of metrics.jsonl.
      wandb_project: a Weights & Biases project to log to as well; "" for none.

    Examples:
      >>> from growth import training
      >>> config = training.defaults(
      ...     vocab_size=256, max_length=16, embed_dim=8, num_layers=1, num_heads=2, mlp_dim=16
      ... )
      >>> config.growth = (dict(step=500, mlp_dim=32),)
      >>> run = training.parse(config)
      >>> [stage.architecture.mlp_dim for stage in run.stages]
      [16, 32]
      >>> run.tokens_per_step
      256

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, section 3.
      There growth is composed; the rest of a run is in `OptimizerConfig` and its like.
    """

    architecture: Architecture
    growth: Mappings = ()
    initialize_from: Text = ""
    num_steps: Count = 1000
    batch_size: Count = 16
    seed: Seed = 0
    dtype: Dtype = "float32"
    param_dtype: Dtype = "float32"
    remat: Flag = False
    certify: Flag = False
    growth_tolerance: Annotated[
        Positive | None, doc("a positive number, or None for what growth promises")
    ] = None
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    samples: SamplesConfig = dataclasses.field(default_factory=SamplesConfig)
    eval_every: Count = 100
    eval_batches: Count = 8
    checkpoint_every: Count = 200
    checkpoints_kept: Count = 3
    log_every: Count = 10
    wandb_project: Text = ""

    def __post_init__(self) -> None:
        check_fields(self, ConfigError)
        self._check_rate()

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the run."""
        return stages(self.architecture, self.growth, self.num_steps)

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step learns from."""
        return self.batch_size * self.architecture.max_length

    @property
    def warmup_steps(self) -> int:
        """Optimizer steps over which the learning rate rises to its peak."""
        given = self.optimizer.warmup_steps
        return rise_steps(self.stages[0]) if given is None else given

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values that JSON can hold; `parse` is the inverse."""
        return dataclasses.asdict(self)

    def _check_rate(self) -> None:
        """Growth and warm-up come before the learning rate decays."""
        run, begins = self.stages, 1 - self.optimizer.decay
        total = sum(training_flops(run, self.tokens_per_step))

        def share(step: int) -> float:
            return flops_spent(run, step, self.tokens_per_step) / total

        for stage in run[1:]:
            if share(stage.start) > begins:
                raise ConfigError(
                    f"growth[{stage.index - 1}] (which begins stage {stage.index + 1}): step "
                    f"{stage.start} is at {share(stage.start):.1%} of the run's FLOPs, but growth "
                    f"must come before the learning rate decays, at {begins:.1%} "
                    f"(1 - optimizer.decay)"
                )
        # One step is none: the first step learns at the peak.
        warmup = self.warmup_steps
        if warmup > 1 and (warmup > self.num_steps or share(warmup) > begins):
            raise ConfigError(
                f"optimizer.warmup_steps is {warmup}, but the run has {self.num_steps} "
                f"steps, and the warm-up must be over before the learning rate decays, at "
                f"{begins:.1%} of the run's FLOPs (1 - optimizer.decay)"
            )


_PARTS: dict[str, type] = {
    "data": DataConfig,
    "optimizer": OptimizerConfig,
    "mesh": MeshConfig,
    "samples": SamplesConfig,
}


def defaults(**architecture: Any) -> ml_collections.ConfigDict:
    """A config with every field at its default, for a config file to change.

    Args:
      **architecture: the fields of the architecture to start with.

    Examples:
      >>> from growth import training
      >>> config = training.defaults(
      ...     vocab_size=256, max_length=16, embed_dim=8, num_layers=1, num_heads=2, mlp_dim=16
      ... )
      >>> config.num_steps, config.optimizer.learning_rate
      (1000, 0.001)

    References:
      The documentation of ml_collections on `ConfigDict`.
    """
    optional = {
        field.name: field.default
        for field in dataclasses.fields(Architecture)
        if field.default is not dataclasses.MISSING
    }
    fields: dict[str, Any] = {"architecture": optional | architecture}
    for field in dataclasses.fields(TrainConfig):
        if field.name in _PARTS:
            fields[field.name] = dataclasses.asdict(_PARTS[field.name]())
        elif field.name != "architecture":
            fields[field.name] = field.default
    return changeable(fields)


def changeable(fields: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """A config in which every field can be changed, on a command line too.

    Args:
      fields: all fields of a run, as of `TrainConfig.to_dict`.
    """
    sections = {
        name: _settable(part, fields[name]) for name, part in _PARTS.items() if name in fields
    }
    architecture = {
        name: placeholder(object) if value is None else value
        for name, value in fields["architecture"].items()
    }
    own = _settable(TrainConfig, fields)
    return ml_collections.ConfigDict({**own, **sections, "architecture": architecture})


def _settable(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a section. A config would not let None be changed, but for a placeholder."""
    return {
        name: placeholder(number_type(kind, name)) if value is None else value
        for name, value in values.items()
    }


def parse(config: Mapping[str, Any] | ml_collections.ConfigDict) -> TrainConfig:
    """The run that a config describes.

    Raises:
      ConfigError, ArchitectureError, ScheduleError, DataError: a field is unknown or wrong.

    Examples:
      >>> from growth import training
      >>> config = training.defaults(
      ...     vocab_size=256, max_length=16, embed_dim=8, num_layers=1, num_heads=2, mlp_dim=16
      ... )
      >>> config.num_steps = 10
      >>> training.parse(config).num_steps
      10
      >>> training.parse({**config.to_dict(), "num_step": 10})
      Traceback (most recent call last):
          ...
      growth...ConfigError: unknown field num_step; did you mean num_steps?

    References:
      The documentation of ml_collections on `ConfigDict`.
    """
    fields = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else dict(config)
    if "architecture" not in fields:
        raise ConfigError("architecture is missing")
    sizes = plain_value("architecture", _section("architecture", fields["architecture"]))
    fields["architecture"] = Architecture.from_dict(sizes)
    if isinstance(fields.get("growth"), list | tuple):
        fields["growth"] = plain_value("growth", fields["growth"])
    for name, part in _PARTS.items():
        if name in fields:
            fields[name] = _build(part, _section(name, fields[name]), f"{name}.")
    return _build(TrainConfig, fields, "")


def _section(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{name} is {shown(value)}, but it must be a section, a mapping with fields"
        )
    return dict(value)


def _build(kind: type, values: dict[str, Any], where: str) -> Any:
    known = [field.name for field in dataclasses.fields(kind)]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {where}{near[0]}?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"unknown field {where}{name}; {hint}")
    return kind(**values)
