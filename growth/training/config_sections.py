"""The sections of a config that are not of data: optimizer, mesh and samples."""

import dataclasses
from typing import Annotated

from annotated_types import Ge, Le, doc

from growth.errors import InputError
from growth.training.fields import (
    MOST,
    Count,
    MeshSize,
    NotNegative,
    Positive,
    Share,
    Texts,
    check_fields,
    refuse,
)


class ConfigError(InputError):
    """A config is wrong; the message names the field, what it is and what it may be."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW behind clipping by global norm, with a warm-up, stable, decay learning rate.

    The rate rises over steps, for a moment of the optimizer needs so many of them, however little
    they cost. It decays over training FLOPs, so that stages of different cost share one schedule
    fairly.

    Attributes:
      learning_rate: the peak.
      warmup_steps: optimizer steps over which the rate rises from 0 to the peak; 0 for none. None:
        100, but at most a quarter of the first stage.
      decay: share of the run's FLOPs, at the end, over which it falls to `final_learning_rate`.
      final_learning_rate: share of the peak that is left at the end.
      b1, b2, eps: Adam's.
      weight_decay: decoupled; not on gains, biases and embeddings.
      clip_norm: greatest global norm of a gradient.

    Examples:
      >>> from growth.training import OptimizerConfig
      >>> OptimizerConfig(learning_rate=3e-3, b2=0.999).weight_decay
      0.1
      >>> OptimizerConfig(decay=1.5)
      Traceback (most recent call last):
          ...
      growth...ConfigError: optimizer.decay is 1.5, but it must be a number of at least 0 and ...

    References:
      AdamW: Loshchilov and Hutter, arXiv 1711.05101, algorithm 2. Warm-up, stable, decay: Hu et
      al., arXiv 2404.06395, section 4.
    """

    learning_rate: Positive = 1e-3
    warmup_steps: Annotated[
        Annotated[int, Ge(0), Le(MOST)] | None,
        doc(f"a whole number of at least 0 and at most {MOST}, or None"),
    ] = None
    decay: Share = 0.2
    final_learning_rate: Share = 0.0
    b1: Share = 0.9
    b2: Share = 0.95
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.1
    clip_norm: Positive = 1.0

    def __post_init__(self) -> None:
        check_fields(self, ConfigError)


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

    data: MeshSize = -1
    fsdp: MeshSize = 1
    tensor: MeshSize = 1

    def __post_init__(self) -> None:
        check_fields(self, ConfigError)
        if [self.data, self.fsdp, self.tensor].count(-1) > 1:
            refuse(self, "data", "-1 only where fsdp and tensor are not", ConfigError)


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

    prompts: Texts = ()
    num_tokens: Count = 200
    temperature: NotNegative = 0.8

    def __post_init__(self) -> None:
        check_fields(self, ConfigError)
