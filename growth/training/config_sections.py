"""The sections of a config that are not of data: optimizer, mesh and samples."""

import dataclasses

from growth.errors import InputError


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

    Examples:
      >>> from growth.training import OptimizerConfig
      >>> OptimizerConfig(learning_rate=3e-3, b2=0.999).weight_decay
      0.1
      >>> OptimizerConfig(warmup=1.5)
      Traceback (most recent call last):
          ...
      growth...ConfigError: optimizer.warmup is 1.5, but it must be at least 0 and less than 1

    References:
      AdamW: Loshchilov and Hutter, arXiv 1711.05101, algorithm 2. Warm-up, stable, decay: Hu et
      al., arXiv 2404.06395, section 4.
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
            check_field(self, name, getattr(self, name) > 0, "a positive number")
        for name in ("warmup", "decay", "final_learning_rate", "b1", "b2"):
            check_field(self, name, 0 <= getattr(self, name) < 1, "at least 0 and less than 1")
        check_field(self, "weight_decay", self.weight_decay >= 0, "at least 0")
        check_field(self, "decay", self.warmup + self.decay <= 1, "at most 1 together with warmup")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh's axes; one of them may be −1, which is all the devices that are left.

    Attributes:
      data: copies of the model, each with a share of the batch.
      fsdp: parts of every parameter, along its embed axis; the batch is shared along it too.
      tensor: parts of heads, MLP units and vocabulary.

    Examples:
      >>> from growth.training import MeshConfig
      >>> MeshConfig(data=-1, tensor=2)
      MeshConfig(data=-1, fsdp=1, tensor=2)

    References:
      Data and tensor parallelism: Shoeybi et al., arXiv 1909.08053, section 3. Parameters in
      parts: Rajbhandari et al., arXiv 1910.02054, section 5.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        for name in ("data", "fsdp", "tensor"):
            size = getattr(self, name)
            check_field(self, name, size == -1 or size >= 1, "at least 1, or -1 for what is left")
        unknown = [self.data, self.fsdp, self.tensor].count(-1)
        check_field(self, "data", unknown <= 1, "-1 only where fsdp and tensor are not")


@dataclasses.dataclass(frozen=True)
class SamplesConfig:
    """Texts that the model continues at the end of every stage, for the report.

    Attributes:
      prompts: what it continues.
      num_tokens: how far.
      temperature: 0 takes the likeliest token.

    Examples:
      >>> from growth.training import SamplesConfig
      >>> SamplesConfig(prompts=["def "]).prompts
      ('def ',)

    References:
      Temperature: Ackley, Hinton and Sejnowski, *A Learning Algorithm for Boltzmann Machines*,
      1985.
    """

    prompts: tuple[str, ...] = ()
    num_tokens: int = 200
    temperature: float = 0.8

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", tuple(self.prompts))
        check_field(self, "num_tokens", self.num_tokens >= 1, "at least 1")
        check_field(self, "temperature", self.temperature >= 0, "at least 0")


def check_field(config: object, name: str, holds: bool, accepted: str) -> None:
    """Refuses a field of a section, or of the config itself, unless it holds."""
    if not holds:
        kind = type(config).__name__.removesuffix("Config").lower()
        where = "" if kind == "train" else f"{kind}."
        raise ConfigError(f"{where}{name} is {getattr(config, name)!r}, but it must be {accepted}")
