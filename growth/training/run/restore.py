"""How a run starts or resumes, and how what it saved is loaded again."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console

from growth.architecture import Architecture
from growth.files import write_atomically
from growth.models import Model
from growth.training import mesh as meshes
from growth.training.checkpoints import Checkpoints, Place
from growth.training.config import TrainConfig, parse
from growth.training.config_sections import ConfigError, MeshConfig
from growth.training.data.batches import Batch, Examples, eval_batches, train_iterator
from growth.training.data.dataset import Dataset, load_dataset, require_batch
from growth.training.formatting import format_count
from growth.training.optimization import make_optimizer
from growth.training.report.metrics import MetricsWriter, keep_old_metrics, require_wandb
from growth.training.report.progress import Progress
from growth.training.run.logging import log_start
from growth.training.run.resuming import resume
from growth.training.run.run import Run
from growth.training.run.stopping import stop_request
from growth.training.schedule import Stage, flops_spent
from growth.training.state import (
    TrainState,
    init_state,
    make_model,
    restorable_state,
    with_pretrained_parameters,
)
from growth.types import Params


@dataclasses.dataclass(frozen=True)
class CheckpointMetadata:
    """What a checkpoint says of itself, so that the state in it can be loaded.

    Attributes:
      config: the run that it belongs to.
      stage: the index of the stage that the state is in.
      architecture: that of the stage.
      data: the digest of the data that it was trained on.
    """

    config: TrainConfig
    stage: int
    architecture: Architecture
    data: str

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values that JSON can hold; `load_metadata` reads them."""
        return {
            "architecture": self.architecture.to_dict(),
            "stage": self.stage,
            "config": self.config.to_dict(),
            "data": self.data,
        }


@contextlib.contextmanager
def open_run(
    config: TrainConfig, workdir: Path, resume_from: int | None = None
) -> Iterator[tuple[Run, Stage, TrainState]]:
    """Starts a run, or resumes the one in `workdir`.

    Whatever can be wrong is found before anything is written. Gives the run, the stage it is in and
    the training state. At the very end of a stage that is the stage, not yet the next one.

    Args:
      config: the run.
      workdir: its directory.
      resume_from: the step of the checkpoint to go on from, instead of the newest that is whole.
        Newer ones are renamed.

    Raises:
      ConfigError, DataError, MeshError, CheckpointError: the run cannot start.

    Examples:
      >>> from pathlib import Path
      >>> from growth import training
      >>> _, _, config = training.load_model("runs/small")
      >>> with training.open_run(config, Path("runs/small")) as (run, stage, state):
      ...     print(stage.index, int(state.step))
      resumes after step 4: ...
      1 4

    References:
      The documentation of Orbax on checkpoints, and that of Grain on iterators that are saved.
    """
    stages = config.stages
    require_wandb(config.wandb_project)
    mesh = meshes.make_mesh(config.mesh, config.batch_size)
    data = load_dataset(config.data, config.architecture)
    require_batch(data, config.batch_size)
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
    found = resume(config, workdir, checkpoints, tx, mesh, batches, data.digest, resume_from)
    if found is None:
        stage = stages[0]
        key = jax.random.key(config.seed)
        state = init_state(stage.architecture, tx, config.param_dtype, mesh, key)
        if config.initialize_from:
            state = with_pretrained_parameters(state, config)
    else:
        stage, state = found.stage, found.state

    first = jax.process_index() == 0
    logs = workdir if first else workdir / f"process_{jax.process_index()}"
    total = flops_spent(stages, config.num_steps, config.tokens_per_step)
    progress = Progress(config.num_steps, total, len(stages), console=Console(quiet=not first))
    step = None if found is None else found.step
    with stop_request() as stop, checkpoints, contextlib.ExitStack() as stack:
        notes = [] if found is None else found.set_newer_aside(checkpoints)
        notes += keep_old_metrics(logs, step, goes_back=found is not None and bool(found.undone))
        metrics = stack.enter_context(
            MetricsWriter(logs, step, stage.index, wandb_project=config.wandb_project)
        )
        stack.enter_context(progress)
        write_config(config, logs)
        for note in notes:
            progress.note(note)
        if found is not None and found.changes:
            progress.note(f"changed from step {step:,} on: {', '.join(found.changes)}")
        progress.note(_greeting(data, mesh, stages, step))
        log_start(metrics, config, stage, step or 0, data.about)
        eval_set = _fixed_batches(config, data.validation, config.eval_batches, mesh)
        probe = jax.tree.map(lambda batch: batch[0], _fixed_batches(config, data.train, 1, mesh))
        run = Run(
            config, workdir, stages, mesh, tx, data.tokenizer, data.digest, batches, eval_set,
            probe, checkpoints, metrics, progress, stop,
        )  # fmt: skip
        yield run, stage, state


def write_config(config: TrainConfig, workdir: Path) -> None:
    """Writes `config.json`, whole or not at all."""
    write_atomically(workdir / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")


def save_state(
    checkpoints: Checkpoints,
    config: TrainConfig,
    stage: Stage,
    state: TrainState,
    batches: grain.DatasetIterator | Place,
    data: str,
) -> None:
    """Saves a state, with all that is needed to load it again.

    Args:
      checkpoints: where to.
      config: the run.
      stage: the stage that the state is in.
      state: the state.
      batches: the training data, or the place in it.
      data: the digest of the data.
    """
    about = CheckpointMetadata(config, stage.index, stage.architecture, data)
    checkpoints.save(int(state.step), state, batches, about.to_dict())


def load_metadata(checkpoints: Checkpoints, step: int) -> CheckpointMetadata:
    """What a checkpoint says of itself. Reads no arrays.

    Raises:
      CheckpointError: there is no such checkpoint.
    """
    about = checkpoints.metadata(step)
    architecture = Architecture.from_dict(about["architecture"])
    return CheckpointMetadata(parse(about["config"]), about["stage"], architecture, about["data"])


def load_state(
    checkpoints: Checkpoints, step: int, config: TrainConfig, architecture: Architecture
) -> tuple[TrainState, Mesh]:
    """A state on one device, and the mesh of that device.

    Args:
      checkpoints: where from.
      step: which checkpoint.
      config: the run; says the optimizer and the dtype of the parameters.
      architecture: that of the checkpoint.

    Raises:
      CheckpointError: there is no such checkpoint, or it has another architecture.
    """
    mesh = meshes.make_mesh(MeshConfig(data=1), batch_size=1)
    target = restorable_state(architecture, make_optimizer(config), config.param_dtype, mesh)
    return checkpoints.restore(step, target), mesh


def load_model(
    workdir: str | os.PathLike[str], step: int | None = None
) -> tuple[Model, Params, TrainConfig]:
    """The model of a run's checkpoint, its parameters, and the run's config.

    Args:
      workdir: the run's directory.
      step: which checkpoint; None for the newest.

    Raises:
      CheckpointError: there is no such checkpoint.

    Examples:
      >>> from growth import training
      >>> model, params, config = training.load_model("runs/small")
      >>> model.architecture.mlp_dim, config.num_steps
      (24, 4)

    References:
      The documentation of Orbax on checkpoints.
    """
    with Checkpoints(Path(workdir) / "checkpoints") as checkpoints:
        step = checkpoints.newest_step() if step is None else step
        saved = load_metadata(checkpoints, step)
        state, _ = load_state(checkpoints, step, saved.config, saved.architecture)
    return make_model(saved.config, saved.architecture), state.params, saved.config


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
