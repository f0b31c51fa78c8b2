"""The flags of every command: a dataclass for each, whose docstring is the command's help.

None stands for a flag that was not given, so that one that does not apply can be refused, whatever
its value. Nothing here opens JAX.
"""

import dataclasses
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from growth.errors import InputError

Dtype = Literal["float32", "bfloat16", "float16", "float64"]

# What `--config.FIELD=VALUE` says, which is not for the parser of flags.
Overrides = Annotated[tuple[str, ...], Parameter(parse=False)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """What grows.

    Attributes:
      embed_dim: Width of the residual stream of the larger model; as it is if not given.
      num_layers: Its layers.
      num_heads: Its query heads.
      num_kv_heads: Its key/value heads; as many queries for each as before, if not given.
      head_dim: Its width of queries, keys and values of a head.
      qk_dim: Width of queries and keys alone.
      v_dim: Width of values alone.
      mlp_dim: Its hidden units of an MLP.
      layer_positions: Where new layers go: an index for each, counted in the old layers, such as
        0,8,8,30. Evenly if not given.
    """

    embed_dim: int | None = None
    num_layers: int | None = None
    num_heads: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    qk_dim: int | None = None
    v_dim: int | None = None
    mlp_dim: int | None = None
    layer_positions: str | None = None

    def growth_step(self) -> dict[str, Any]:
        """What was given, as arguments of `growth.grow_to`.

        Raises:
          InputError: `layer_positions` are no indices.
        """
        step = {name: value for name, value in vars(self).items() if value is not None}
        width = step.pop("head_dim", None)
        if width is not None:
            step = dict(qk_dim=width, v_dim=width) | step
        positions = step.pop("layer_positions", None)
        if positions is not None:
            step["position"] = _indices(positions)
        return step


GrowthSizes = Annotated[Sizes, Parameter(name="*")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Trains a model on a growth schedule.

    The same command again resumes. Every field of the config can be set here:
    --config.optimizer.learning_rate=3e-4. Ctrl-C saves and stops. Exits with 0 where it finished,
    2 where something given is wrong, 3 where training diverged, and 4 where it was asked to stop.

    Attributes:
      config: A preset, or the path of a config file; an argument of either follows a colon.
      workdir: Where the run keeps its checkpoints, metrics and report.
      resume_from: The step of the checkpoint to go on from; the newest that is whole if not given.
    """

    config: str
    workdir: str
    resume_from: int | None = None
    overrides: Overrides = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Shows what growth would be, and does nothing.

    Of a config: the stages of the run, their sizes and costs, on any machine. Of a checkpoint:
    sizes and costs before and after.

    Attributes:
      config: A preset, or the path of a config file; an argument of either follows a colon.
      source: Or a checkpoint: the directory of a run, or one of Hugging Face.
      init: What new entries are where anything keeps the function: fresh, copy or
        copy:SIGNAL_TO_NOISE. fresh if not given.
      dtype: Of Hugging Face tensors; as they are if not given.
      ignore_config_keys: Keys of a Hugging Face config.json that growth does not read, and that
        change nothing that the model computes: key,key.
      step: Which checkpoint of a run; the newest if not given.
      moments: How second moments of a run's new entries begin. zeros if not given.
    """

    config: str | None = None
    source: str | None = None
    sizes: GrowthSizes = Sizes()
    init: str | None = None
    dtype: Dtype | None = None
    ignore_config_keys: str | None = None
    step: int | None = None
    moments: Literal["zeros", "mean", "age"] | None = None
    overrides: Overrides = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expand:
    """Grows a checkpoint that is there: of a run, or of Hugging Face.

    The result computes the same function. It appears when it is whole; the source is left as it
    is. Give only what should grow.

    Attributes:
      source: The directory of the checkpoint.
      output: The directory to write; it must not exist.
      init: What new entries are where anything keeps the function: fresh, copy or
        copy:SIGNAL_TO_NOISE.
      seed: Decides them.
      dtype: Of Hugging Face tensors; as they are if not given.
      max_shard_size: Of Hugging Face files; 5GB if not given.
      ignore_config_keys: Keys of a Hugging Face config.json that growth does not read, and that
        change nothing that the model computes: key,key.
      verify: Whether transformers compares both Hugging Face models; if it can, where this is not
        given.
      step: Which checkpoint of a run; the newest if not given.
      moments: How second moments of a run's new entries begin. zeros if not given.
      growth_tolerance: How far logits of a run may move, relative to the largest; what growth
        promises, or the run's config says, if not given.
    """

    source: str
    output: str
    sizes: GrowthSizes = Sizes()
    init: str = "fresh"
    seed: int = 0
    dtype: Dtype | None = None
    max_shard_size: str | None = None
    ignore_config_keys: str | None = None
    verify: bool | None = None
    step: int | None = None
    moments: Literal["zeros", "mean", "age"] | None = None
    growth_tolerance: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Certify:
    """Certifies a growth step: is the function the same, and can all new entries learn?

    Grows the newest checkpoint of a run in memory, and prints the certificate. Exits with 0 where
    every promise is kept, and with 1 where one is broken.

    Attributes:
      workdir: The directory of the run.
      step: Which checkpoint; the newest if not given.
      init: What new entries are where anything keeps the function: fresh, copy,
        copy:SIGNAL_TO_NOISE or gradmax.
      batch_size: Sequences, or images, that it looks at.
      seed: Decides new entries and the batch.
      json: A file to write the certificate to.
    """

    workdir: str
    sizes: GrowthSizes = Sizes()
    step: int | None = None
    init: str = "fresh"
    batch_size: int = 8
    seed: int = 0
    json: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """Continues a text with a trained model.

    Attributes:
      workdir: The directory of the run.
      prompt: The text to continue.
      step: Which checkpoint; the newest if not given.
      num_tokens: How many tokens to add.
      temperature: 0 takes the likeliest token.
      top_k: Draw among this many likeliest tokens only.
      seed: Decides what is drawn.
    """

    workdir: str
    prompt: str
    step: int | None = None
    num_tokens: int = 300
    temperature: float = 0.8
    top_k: int | None = None
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Writes the report of a run, or puts several side by side: growth report RUN RUN ...

    Of one run it is RUN/report.html, which training writes as well. Of several it is a page with
    their losses over steps, tokens, FLOPs and time, what they spent, and how their configs differ.

    Attributes:
      runs: The directories of the runs.
      output: The page to write instead; comparison.html for several, if not given.
    """

    runs: Annotated[tuple[str, ...], Parameter(parse=False)] = ()
    output: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Writes a checkpoint of a run as one of Hugging Face, which transformers loads.

    With --like, the config of that checkpoint is kept but for what grew, and its tokenizer is
    carried over.

    Attributes:
      workdir: The directory of the run.
      output: The directory to write; it must not exist.
      like: A checkpoint of Hugging Face that the run began with.
      family: Else the model_type to write, such as llama.
      step: Which checkpoint; the newest if not given.
      dtype: Of the tensors; as the run's parameters if not given.
      max_shard_size: How large a file may be.
      ignore_config_keys: Keys of the config.json of --like that growth does not read, and that
        change nothing that the model computes: key,key.
    """

    workdir: str
    output: str
    like: str | None = None
    family: str | None = None
    step: int | None = None
    dtype: Dtype | None = None
    max_shard_size: str = "5GB"
    ignore_config_keys: str | None = None


def _indices(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(index) for index in text.split(","))
    except ValueError as error:
        raise InputError(
            f"layer_positions is {text!r}, but it must be indices of layers, such as 0,8,8,30"
        ) from error
