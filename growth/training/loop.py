"""The training loop: start or resume, train a stage, grow, train the next."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import jax

from growth.training.config import TrainConfig
from growth.training.data.batches import Batch
from growth.training.growth_step import grow
from growth.training.report.metrics import FILE_NAME, read_metrics
from growth.training.report.page import write_report
from growth.training.run.logging import log_evaluation, log_samples, log_steps
from growth.training.run.restore import open_run, save_state
from growth.training.run.run import Run
from growth.training.schedule import Stage
from growth.training.state import TrainState, state_shardings
from growth.training.step import Metrics, make_train_step


def train(config: TrainConfig, workdir: str | os.PathLike[str]) -> Path:
    """Trains a run to its end, or until it is asked to stop; resumes what is in `workdir`.

    Args:
      config: the run.
      workdir: its directory, for checkpoints, metrics.jsonl, tensorboard and report.html.

    Returns:
      The path of the report.

    Raises:
      ConfigError, DataError, MeshError, CheckpointError: the run cannot start; nothing is written.
      PreservationError, CertificateError: a growth changed the function, or its certificate failed.
        The report is written, and the same call goes on from the checkpoint before the growth.
      DivergedError: a loss or its gradient is not finite.

    Examples:
      >>> from growth import training
      >>> config = training.defaults(
      ...     vocab_size=256, max_length=16, embed_dim=8, num_layers=1, num_heads=2, mlp_dim=16
      ... )
      >>> config.data.files, config.num_steps, config.batch_size = "text/*.txt", 4, 8
      >>> training.train(training.parse(config), "runs/new").name
      starts: 4.76k parameters, ...
      'report.html'

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, section 3.
      How a loop reads: nanodo, https://github.com/google-deepmind/nanodo.
    """
    workdir = Path(workdir)
    with open_run(config, workdir) as (run, first, state):
        try:
            for stage in run.stages[first.index :]:
                if stage is not first:
                    state = grow(run, stage, state)
                state = train_stage(run, stage, state)
                if run.stop.requested:
                    break
            if int(state.step) < config.num_steps:
                run.progress.note(f"stopped after step {state.step}; the same command goes on")
        finally:
            report = _report(config, workdir)
    return report


def train_stage(run: Run, stage: Stage, state: TrainState) -> TrainState:
    """Trains one architecture, from where the state is to the end of its stage."""
    config, step = run.config, int(state.step)
    if step >= stage.stop:
        return state
    train_step = _compiled_step(run, stage, state)
    pending: list[Metrics] = []
    began = time.perf_counter()
    last = False
    while not last:
        state, metrics = train_step(state, run.next_batch())
        step += 1
        pending.append(metrics)

        ends = step == stage.stop
        # Read once, so that the run never stops at a step that it has not saved.
        last = ends or run.stop.requested
        evaluates = step % config.eval_every == 0 or ends
        saves = step % config.checkpoint_every == 0 or last
        if step % config.log_every == 0 or evaluates or saves:
            log_steps(run, stage, step, pending, began)
            if evaluates:
                log_evaluation(run, stage, step, state)
            if ends:
                log_samples(run, stage, step, state)
            if saves:
                save_state(run.checkpoints, config, stage, state, run.batches)
            pending, began = [], time.perf_counter()
    return state


def _compiled_step(
    run: Run, stage: Stage, state: TrainState
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The train step of a stage, compiled before its first batch, so that speeds are of steps."""
    shardings = state_shardings(stage.architecture, run.tx, run.config.param_dtype, run.mesh)
    step = jax.jit(
        make_train_step(run.model(stage), run.tx), donate_argnums=0, out_shardings=(shardings, None)
    )
    batch = jax.tree.map(
        lambda all: jax.ShapeDtypeStruct(all.shape[1:], all.dtype, sharding=run.batch_sharding),
        run.eval_set,
    )
    return step.lower(state, batch).compile()


def _report(config: TrainConfig, workdir: Path) -> Path:
    records = read_metrics(workdir / FILE_NAME)
    return write_report(workdir, title=workdir.name, stages=config.stages, records=records)
