"""What a run holds on to while it trains, and what it measures."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from growth.models import Model, logits
from growth.training import mesh as meshes
from growth.training.checkpoints import Checkpoints
from growth.training.config import TrainConfig
from growth.training.data.batches import Batch
from growth.training.data.tokenizers import Tokenizer
from growth.training.report.metrics import MetricsWriter
from growth.training.report.progress import Progress
from growth.training.run.stopping import StopRequest
from growth.training.schedule import Stage, flops_spent
from growth.training.state import make_model
from growth.training.step import Metrics, make_evaluation
from growth.types import Array, Inputs, Params


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run holds on to. The training state is not in it: it is handed from step to step.

    Attributes:
      config: the run as data.
      workdir: its directory.
      stages: its stages.
      mesh: the devices.
      tx: the optimizer of all stages.
      tokenizer: what tokens mean; None for images.
      data: the digest of the data.
      batches: the training data.
      eval_set: the batches of an evaluation, [num_batches, batch, ...].
      probe: a fixed batch of the training side, for what growth takes the gradient of.
      checkpoints, metrics, progress: what is written and shown.
      stop: whether somebody has asked the run to stop.
    """

    config: TrainConfig
    workdir: Path
    stages: tuple[Stage, ...]
    mesh: Mesh
    tx: optax.GradientTransformation
    tokenizer: Tokenizer | None
    data: str
    batches: grain.DatasetIterator
    eval_set: Batch
    probe: Batch
    checkpoints: Checkpoints
    metrics: MetricsWriter
    progress: Progress
    stop: StopRequest

    def model(self, stage: Stage) -> Model:
        """The model of a stage, on the mesh."""
        return make_model(self.config, stage.architecture, self.batch_sharding)

    @property
    def batch_sharding(self) -> NamedSharding:
        """How a batch [batch, ...] is split over the mesh."""
        return NamedSharding(self.mesh, meshes.BATCH)

    def next_batch(self) -> Batch:
        """The next training batch."""
        place = functools.partial(jax.make_array_from_process_local_data, self.batch_sharding)
        return jax.tree.map(place, next(self.batches))

    def flops(self, step: int) -> float:
        """Training FLOPs spent after `step` steps."""
        return flops_spent(self.stages, step, self.config.tokens_per_step)

    def evaluate(self, stage: Stage, params: Params) -> dict[str, float]:
        """Mean loss on the evaluation set, in nats per target, and the share that is right."""
        return self._evaluate(self.model(stage), params)

    def measure(self, stage: Stage, params: Params) -> tuple[float, jax.Array]:
        """The loss on the evaluation set and the logits [batch, ...] of its first batch.

        Computed in float32 whatever the run's dtype: two models that compute the same function do
        not round alike, and in bfloat16 that would hide whether they do.
        """
        model = self.model(stage).clone(dtype=jnp.dtype("float32"))
        with jax.default_matmul_precision("float32"):
            inputs = self.eval_set.inputs[0]
            return self._evaluate(model, params)["loss"], _logits(model)(params, inputs)

    def _evaluate(self, model: Model, params: Params) -> dict[str, float]:
        with jax.default_matmul_precision("float32"):  # accelerators may take less for float32
            measured = _evaluation(model)(params, self.eval_set)
        return {name: float(value) for name, value in measured.items()}


@functools.cache
def _evaluation(model: Model) -> Callable[[Params, Batch], Metrics]:
    return jax.jit(make_evaluation(model))


@functools.cache
def _logits(model: Model) -> Callable[[Params, Inputs], jax.Array]:
    return jax.jit(functools.partial(logits, model))


@jax.jit
def relative_difference(before: Array, after: Array) -> jax.Array:
    """How far logits moved: max |after − before| / max |before|."""
    return jnp.abs(after - before).max() / jnp.abs(before).max()
