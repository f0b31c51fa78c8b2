"""What a run is: frozen dataclasses, parsed from a config at the boundary.

A config file builds an `ml_collections.ConfigDict` from `defaults()`, so that every field can be
set from the command line; `parse` makes a `TrainConfig` of it. Nothing behind it sees a mapping.
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections.config_dict import placeholder

from growth.architecture import Architecture
from growth.errors import InputError
from growth.training.data.config import DataConfig
from growth.training.schedule import Stage, stages, training_flops


class ConfigError(InputError):
    """A config is wrong; the message names the field, what it is and what it may be."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW behind clipping by global norm, with a warm-up, stable, decay learning rate.

    The learning rate is laid out over training FLOPs, not steps, so that stages of different cost
    share one schedule fairly.

    Attributes:
      learning_rate: the peak.
      warmup: share of the run's FLOPs over which the rate rises from 0 to the peak.
      decay: share of the run's FLOPs, at the end, over which it falls to `final_learning_rate`.
      final_learning_rate: share of the peak that is left at the end.
      b1, b2, eps: Adam's.
      weight_decay: decoupled; not on gains, biases and embeddings.
      clip_norm: greatest global norm of a gradient.
    """

    learning_rate: float = 1e-3
    warmup: float = 0.02
    decay: float = 0.2
    final_learning_rate: float = 0.0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "eps", "clip_norm"):
            _check(self, name, getattr(self, name) > 0, "a positive number")
        for name in ("warmup", "decay", "final_learning_rate", "b1", "b2"):
            _check(self, name, 0 <= getattr(self, name) < 1, "at least 0 and less than 1")
        _check(self, "weight_decay", self.weight_decay >= 0, "at least 0")
        _check(self, "decay", self.warmup + self.decay <= 1, "at most 1 together with warmup")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh's axes; one of them may be −1, which is all the devices that are left.

    Attributes:
      data: copies of the model, each with a share of the batch.
      fsdp: parts of every parameter, along its embed axis; the batch is shared along it too.
      tensor: parts of heads, MLP units and vocabulary.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        for name in ("data", "fsdp", "tensor"):
            size = getattr(self, name)
            _check(self, name, size == -1 or size >= 1, "at least 1, or -1 for what is left")
        unknown = [self.data, self.fsdp, self.tensor].count(-1)
        _check(self, "data", unknown <= 1, "-1 only where fsdp and tensor are not")


@dataclasses.dataclass(frozen=True)
class SamplesConfig:
    """Texts that the model continues at the end of every stage, for the report.

    Attributes:
      prompts: what it continues.
      num_tokens: how far.
      temperature: 0 takes the likeliest token.
    """

    prompts: tuple[str, ...] = ()
    num_tokens: int = 200
    temperature: float = 0.8

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", tuple(self.prompts))
        _check(self, "num_tokens", self.num_tokens >= 1, "at least 1")
        _check(self, "temperature", self.temperature >= 0, "at least 0")


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
    """

    architecture: Architecture
    growth: tuple[Mapping[str, Any], ...] = ()
    initialize_from: str = ""
    num_steps: int = 1000
    batch_size: int = 16
    seed: int = 0
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: bool = False
    certify: bool = False
    growth_tolerance: float | None = None
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    samples: SamplesConfig = dataclasses.field(default_factory=SamplesConfig)
    eval_every: int = 100
    eval_batches: int = 8
    checkpoint_every: int = 200
    checkpoints_kept: int = 3
    log_every: int = 10
    wandb_project: str = ""

    def __post_init__(self) -> None:
        positive = ("num_steps", "batch_size", "eval_every", "eval_batches", "checkpoint_every")
        for name in (*positive, "checkpoints_kept", "log_every"):
            _check(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("dtype", "param_dtype"):
            _check(
                self, name, getattr(self, name) in ("float32", "bfloat16"), "float32 or bfloat16"
            )
        tolerance = self.growth_tolerance
        is_number = isinstance(tolerance, int | float) and 0 < tolerance < math.inf
        accepted = "a positive number, or None for what growth promises"
        _check(self, "growth_tolerance", tolerance is None or is_number, accepted)
        self._check_growth_is_in_stable_part()

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the run."""
        return stages(self.architecture, self.growth, self.num_steps)

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step learns from."""
        return self.batch_size * self.architecture.max_length

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values that JSON can hold; `parse` is the inverse."""
        return dataclasses.asdict(self)

    def _check_growth_is_in_stable_part(self) -> None:
        run = self.stages
        costs = training_flops(run, self.tokens_per_step)
        stable = (self.optimizer.warmup, 1 - self.optimizer.decay)
        for stage in run[1:]:
            share = sum(costs[: stage.index]) / sum(costs)
            if not stable[0] <= share <= stable[1]:
                raise ConfigError(
                    f"growth[{stage.index - 1}] (which begins stage {stage.index + 1}): step "
                    f"{stage.start} is at {share:.1%} of the run's FLOPs, but growth belongs where "
                    f"the learning rate is stable, between {stable[0]:.1%} (optimizer.warmup) and "
                    f"{stable[1]:.1%} (1 - optimizer.decay)"
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
    # A config would not let None be changed, but for a placeholder.
    unset = (
        {} if fields["growth_tolerance"] is not None else {"growth_tolerance": placeholder(float)}
    )
    architecture = {
        name: placeholder(object) if value is None else value
        for name, value in fields["architecture"].items()
    }
    return ml_collections.ConfigDict({**fields, **unset, "architecture": architecture})


def parse(config: Mapping[str, Any] | ml_collections.ConfigDict) -> TrainConfig:
    """The run that a config describes.

    Raises:
      ConfigError, ArchitectureError, ScheduleError, DataError: a field is unknown or wrong.
    """
    fields = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else dict(config)
    if "architecture" not in fields:
        raise ConfigError("architecture is missing")
    fields["architecture"] = Architecture.from_dict(dict(fields["architecture"]))
    growth = fields.get("growth", ())
    if not isinstance(growth, list | tuple) or not all(isinstance(e, Mapping) for e in growth):
        raise ConfigError(
            f"growth is {growth!r}, but it must be a tuple of dicts; on a command line write "
            f"--config.growth=\"({{'step': 300, 'embed_dim': 192}},)\""
        )
    fields["growth"] = tuple(dict(entry) for entry in growth)
    for name, part in _PARTS.items():
        if name in fields:
            fields[name] = _build(part, dict(fields[name]), f"{name}.")
    return _build(TrainConfig, fields, "")


def _build(kind: type, values: dict[str, Any], where: str) -> Any:
    known = [field.name for field in dataclasses.fields(kind)]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {where}{near[0]}?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"unknown field {where}{name}; {hint}")
    return kind(**values)


def _check(config: Any, name: str, holds: bool, accepted: str) -> None:
    if not holds:
        kind = type(config).__name__.removesuffix("Config").lower()
        where = "" if kind == "train" else f"{kind}."
        raise ConfigError(f"{where}{name} is {getattr(config, name)!r}, but it must be {accepted}")
