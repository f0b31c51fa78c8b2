"""A run: what it holds on to while it trains, how it starts or resumes, and what it writes down."""

import contextlib
import dataclasses
import functools
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console

from growth.architecture import Architecture
from growth.models import Model, logits
from growth.training import mesh as meshes
from growth.training.checkpoints import CheckpointError, Checkpoints
from growth.training.config import ConfigError, MeshConfig, TrainConfig, parse
from growth.training.data.batches import Batch, Examples, eval_batches, train_iterator
from growth.training.data.dataset import Dataset, load_dataset
from growth.training.data.tokenizers import Tokenizer
from growth.training.generate import generate
from growth.training.interrupt import StopRequest, stop_request
from growth.training.metrics import MetricsWriter
from growth.training.optimization import learning_rate, make_optimizer, rewarmed
from growth.training.progress import Progress, format_count
from growth.training.schedule import Stage, flops_spent
from growth.training.state import (
    TrainState,
    differing,
    init_state,
    make_model,
    restorable_state,
    started_from,
)
from growth.training.step import Metrics, make_evaluation


class DivergedError(RuntimeError):
    """A loss or its gradient is not finite; the message says where, and what is still good."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run holds on to. The training state is not in it: it is handed from step to step."""

    config: TrainConfig
    workdir: Path
    stages: tuple[Stage, ...]
    mesh: Mesh
    tx: optax.GradientTransformation
    tokenizer: Tokenizer | None
    batches: grain.DatasetIterator
    eval_set: Batch  # [num_batches, batch, ...]
    probe: Batch  # a fixed batch of the training side, for growth
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

    def evaluate(self, stage: Stage, params: Any) -> dict[str, float]:
        """Mean loss on the evaluation set, in nats per target, and the share that is right."""
        return self._evaluate(self.model(stage), params)

    def measure(self, stage: Stage, params: Any) -> tuple[float, jax.Array]:
        """The loss on the evaluation set and the logits [batch, ...] of its first batch.

        Computed in float32 whatever the run's dtype: two models that compute the same function do
        not round alike, and in bfloat16 that would hide whether they do.
        """
        model = self.model(stage).clone(dtype=jnp.dtype("float32"))
        with jax.default_matmul_precision("float32"):
            inputs = self.eval_set.inputs[0]
            return self._evaluate(model, params)["loss"], _logits(model)(params, inputs)

    def _evaluate(self, model: Model, params: Any) -> dict[str, float]:
        with jax.default_matmul_precision("float32"):  # accelerators may take less for float32
            measured = _evaluation(model)(params, self.eval_set)
        return {name: float(value) for name, value in measured.items()}


@contextlib.contextmanager
def open_run(config: TrainConfig, workdir: Path) -> Iterator[tuple[Run, Stage, TrainState]]:
    """Starts a run, or resumes the one in `workdir`.

    Whatever can be wrong is found before anything is written. Gives the run, the stage it is in and
    the training state. At the very end of a stage that is the stage, not yet the next one.

    Raises:
      ConfigError, DataError, MeshError, CheckpointError: the run cannot start.
    """
    stages = config.stages
    mesh = meshes.make_mesh(config.mesh, config.batch_size)
    data = load_dataset(config.data, config.architecture)
    if config.samples.prompts and data.tokenizer is None:
        raise ConfigError("samples.prompts are texts, but the model sees images: it must be empty")
    tx = make_optimizer(config)
    checkpoints = Checkpoints(
        workdir / "checkpoints",
        keep_last=config.checkpoints_kept,
        keep_steps=[stage.stop for stage in stages],
    )
    batches = train_iterator(
        data.train,
        batch_size=config.batch_size // jax.process_count(),
        seed=config.seed,
        augment=data.augment,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    step = checkpoints.latest_step()
    if step is None:
        stage = stages[0]
        key = jax.random.key(config.seed)
        state = init_state(stage.architecture, tx, config.param_dtype, mesh, key)
        if config.initialize_from:
            state = started_from(config, stage.architecture, state)
    else:
        stage = _stage_of(checkpoints.metadata(step), stages, step, workdir)
        target = restorable_state(stage.architecture, tx, config.param_dtype, mesh)
        state = checkpoints.restore(step, target, batches)

    first = jax.process_index() == 0
    logs = workdir if first else workdir / f"process_{jax.process_index()}"
    total = flops_spent(stages, config.num_steps, config.tokens_per_step)
    progress = Progress(config.num_steps, total, len(stages), console=Console(quiet=not first))
    with (
        checkpoints,
        MetricsWriter(logs, step, stage.index, wandb_project=config.wandb_project) as metrics,
        progress,
        stop_request() as stop,
    ):
        write_config(config, logs)
        progress.note(_greeting(data, mesh, stages, step))
        eval_set = _fixed_batches(config, data.validation, config.eval_batches, mesh)
        probe = jax.tree.map(lambda batch: batch[0], _fixed_batches(config, data.train, 1, mesh))
        run = Run(
            config, workdir, stages, mesh, tx, data.tokenizer, batches, eval_set, probe,
            checkpoints, metrics, progress, stop,
        )  # fmt: skip
        yield run, stage, state


def log_steps(
    run: Run, stage: Stage, step: int, pending: Sequence[Metrics], seconds_before: float
) -> None:
    """Logs the steps since the last log, once it is sure that all in them is finite.

    Args:
      run: the run.
      stage: its stage.
      step: optimizer steps taken.
      pending: the metrics of those steps.
      seconds_before: `time.perf_counter()` before the first of them.

    Raises:
      DivergedError: a loss or the norm of a gradient is not finite.
    """
    values = jax.device_get(list(pending))
    seconds = time.perf_counter() - seconds_before
    for number, metrics in enumerate(values, start=step - len(values) + 1):
        for name, value in metrics.items():
            if not math.isfinite(value):
                # It was computed before the step changed the parameters.
                raise _diverged(run, stage, number - 1, f"{name} of step {number} is {value}")
    loss = float(np.mean([metrics["loss"] for metrics in values]))
    speed = len(values) * run.config.tokens_per_step / seconds
    schedule = learning_rate(run.config.optimizer, run.stages, run.config.tokens_per_step)
    schedule = rewarmed(schedule, run.stages)
    run.metrics.write(
        "train",
        step,
        stage=stage.index,
        loss=loss,
        learning_rate=schedule(step - 1),
        grad_norm=values[-1]["grad_norm"],
        tokens_per_second=speed,
        flops=run.flops(step),
        seconds=run.metrics.seconds,
    )
    run.progress.update(step, loss, speed, run.flops(step), stage.index)


def log_evaluation(run: Run, stage: Stage, step: int, state: TrainState) -> None:
    """Evaluates and logs.

    Raises:
      DivergedError: the loss is not finite.
    """
    measured = run.evaluate(stage, state.params)
    if not math.isfinite(measured["loss"]):
        what = f"evaluation loss after step {step} is {measured['loss']}"
        raise _diverged(run, stage, step, what)
    run.metrics.write("eval", step, stage=stage.index, **measured, flops=run.flops(step))


def log_samples(run: Run, stage: Stage, step: int, state: TrainState) -> None:
    """Lets the model continue the configured prompts, for the report."""
    samples = run.config.samples
    for number, prompt in enumerate(samples.prompts):
        assert run.tokenizer is not None
        text = generate(
            make_model(run.config, stage.architecture),
            state.params,
            run.tokenizer,
            prompt,
            num_tokens=samples.num_tokens,
            temperature=samples.temperature,
            seed=run.config.seed + number,
        )
        run.metrics.write("sample", step, stage=stage.index, prompt=prompt, text=text)


def save(run: Run, stage: Stage, step: int, state: TrainState) -> None:
    """Saves the state, with all that is needed to load it again."""
    about = {
        "architecture": stage.architecture.to_dict(),
        "stage": stage.index,
        "config": run.config.to_dict(),
    }
    run.checkpoints.save(step, state, run.batches, about)


def _diverged(run: Run, stage: Stage, bad_step: int, what: str) -> DivergedError:
    """The error where the parameters after `bad_step` steps are found to be of no use."""
    good = [step for step in run.checkpoints.steps() if step < bad_step]
    return DivergedError(
        f"the {what}, in stage {stage.index + 1} of {len(run.stages)}; last good checkpoint: "
        f"{f'step {good[-1]}' if good else 'none'}. A lower optimizer.learning_rate or "
        f"optimizer.clip_norm may help"
    )


@functools.cache
def _evaluation(model: Model) -> Any:
    return jax.jit(make_evaluation(model))


@functools.cache
def _logits(model: Model) -> Any:
    return jax.jit(functools.partial(logits, model))


@jax.jit
def relative_difference(a: jax.Array, b: jax.Array) -> jax.Array:
    """max |b − a| / max |a|."""
    return jnp.abs(b - a).max() / jnp.abs(a).max()


def _stage_of(about: dict[str, Any], stages: Sequence[Stage], step: int, workdir: Path) -> Stage:
    """The stage that a checkpoint was saved in, once it is sure that it belongs to this run.

    At the very end of a stage that is the stage, not yet the next one; but what was grown between
    runs is saved at the very start of one.
    """
    there = Architecture.from_dict(about["architecture"])
    within = [stage for stage in stages if stage.start <= step <= stage.stop] or [stages[-1]]
    for stage in within:
        if stage.architecture == there:
            return stage
    raise ConfigError(
        f"workdir {workdir} belongs to another architecture: at step {step} it has "
        f"{differing(there, within[0].architecture)}. Give the config that it was begun with, or "
        f"another workdir"
    )


def _fixed_batches(config: TrainConfig, examples: Examples, number: int, mesh: Mesh) -> Batch:
    batches = eval_batches(examples, batch_size=config.batch_size, num_batches=number)
    sharding = NamedSharding(mesh, PartitionSpec(None, *meshes.BATCH))

    def place(batches: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(batches.shape, sharding, lambda index: batches[index])

    return jax.tree.map(place, batches)


def _greeting(data: Dataset, mesh: Mesh, stages: Sequence[Stage], step: int | None) -> str:
    sizes = " → ".join(format_count(stage.architecture.num_parameters) for stage in stages)
    shape = " × ".join(f"{name} {size}" for name, size in mesh.shape.items())
    begun = "starts" if step is None else f"resumes after step {step}"
    return f"{begun}: {sizes} parameters, {data.about}, mesh {shape}"


def write_config(config: TrainConfig, workdir: Path) -> None:
    """Writes `config.json`, whole or not at all."""
    path = workdir / "config.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def load_model(
    workdir: str | os.PathLike, step: int | None = None
) -> tuple[Model, Any, TrainConfig]:
    """The model of a run's checkpoint, its parameters, and the run's config.

    Args:
      workdir: the run's directory.
      step: which checkpoint; None for the newest.

    Raises:
      CheckpointError: there is no such checkpoint.
    """
    with Checkpoints(Path(workdir) / "checkpoints") as checkpoints:
        step = checkpoints.latest_step() if step is None else step
        if step is None:
            raise CheckpointError(f"there is no checkpoint in {workdir}")
        about = checkpoints.metadata(step)
        config = parse(about["config"])
        architecture = Architecture.from_dict(about["architecture"])
        mesh = meshes.make_mesh(MeshConfig(data=1), batch_size=1)
        target = restorable_state(architecture, make_optimizer(config), config.param_dtype, mesh)
        state = checkpoints.restore(step, target)
    return make_model(config, architecture), state.params, config
