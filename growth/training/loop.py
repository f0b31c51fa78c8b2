"""The training loop: start or resume, train a stage, grow, train the next."""

import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax

from growth.training.config import TrainConfig
from growth.training.data.batches import Batch
from growth.training.growth_step import grow
from growth.training.report.metrics import FILE_NAME, read_metrics
from growth.training.report.page import write_report
from growth.training.run.divergence import Judge, set_diverged_aside
from growth.training.run.logging import log_evaluation, log_samples, log_steps
from growth.training.run.restore import open_run, save_state
from growth.training.run.run import Run
from growth.training.run.stopping import DivergedError, StoppedError
from growth.training.schedule import Stage
from growth.training.state import TrainState, state_shardings
from growth.training.step import Metrics, make_train_step


def train(
    config: TrainConfig, workdir: str | os.PathLike[str], *, resume_from: int | None = None
) -> Path:
    """Trains a run to its end; resumes what is in `workdir`.

    It goes on from the newest checkpoint that is whole; newer ones that are damaged are renamed,
    which a line says. What the config changes of what has been trained is refused.

    Args:
      config: the run.
      workdir: its directory, for checkpoints, metrics.jsonl, tensorboard and report.html.
      resume_from: the step of another checkpoint to go on from; newer ones are renamed.

    Returns:
      The path of the report.

    Raises:
      ConfigError, DataError, MeshError, CheckpointError: the run cannot start; nothing is written.
      PreservationError, CertificateError: a growth changed the function, or its certificate failed.
        The report is written, and the same call goes on from the checkpoint before the growth.
      DivergedError: a loss or its gradient is not finite, or parameters have become many times
        larger. Checkpoints that hold what went wrong are renamed: the same call goes on before.
      StoppedError: somebody asked the run to stop: it has saved, and the same call goes on.
      InputError: the disk is full.

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
    with open_run(config, workdir, resume_from) as (run, first, state):
        run.stop.leave = functools.partial(_leave, run)
        run.stop.nothing_unsaved = True
        try:
            _judge_and_show(run, first, state)
            for stage in run.stages[first.index :]:
                if run.stop.requested:
                    break
                if stage.index > first.index:
                    with run.metrics.clocks.running("growth"):
                        state = grow(run, stage, state)
                state = train_stage(run, stage, state)
        except DivergedError as error:
            raise DivergedError(
                f"{error}; {set_diverged_aside(run.checkpoints, error.bad_step)}. A lower "
                f"optimizer.learning_rate or optimizer.clip_norm may help",
                error.bad_step,
            ) from error
        finally:
            run.stop.nothing_unsaved = False
            report = _report(config, workdir)
    step = int(state.step)
    if step < config.num_steps:
        raise StoppedError(f"stopped after step {step}; the same command goes on. report: {report}")
    return report


def train_stage(run: Run, stage: Stage, state: TrainState) -> TrainState:
    """Trains one architecture, from where the state is to the end of its stage."""
    config, step = run.config, int(state.step)
    if step >= stage.stop:
        return state
    with run.metrics.clocks.running("compilation"):
        train_step = _compiled_step(run, stage, state)
    judge = Judge(state.params)
    pending: list[Metrics] = []
    began = time.perf_counter()
    last = False
    while not last:
        state, metrics = train_step(state, run.next_batch())
        run.stop.nothing_unsaved = False
        step += 1
        pending.append(metrics)

        # Read once, so that the run never stops at a step that it has not saved.
        last = step == stage.stop or run.stop.requested
        evaluates = _evaluates(config, stage, step)
        saves = step % config.checkpoint_every == 0 or last
        if step % config.log_every == 0 or evaluates or saves:
            log_steps(run, stage, step, pending, began)
            if saves:
                with run.metrics.clocks.running("saving"):
                    judge.require_good(state, step)
                    run.checkpoints.prune()  # those that are there have been trained on: all good
                    save_state(run.checkpoints, config, stage, state, run.batches, run.data)
                run.stop.nothing_unsaved = True
            if evaluates:
                _judge_and_show(run, stage, state)
            pending, began = [], time.perf_counter()
    return state


def _judge_and_show(run: Run, stage: Stage, state: TrainState) -> None:
    """Evaluates a state and lets it write samples, where that is due and not yet done.

    Comes after the state is saved, for it may fail; where it did, or the run was killed meanwhile,
    it is made up for when the run goes on.
    """
    step = int(state.step)
    if step == 0 or not _evaluates(run.config, stage, step):
        return
    if not run.metrics.has("eval", step):
        log_evaluation(run, stage, step, state)
    if step == stage.stop:
        run.checkpoints.prune()  # the state has been judged, so none before it is needed for that
        log_samples(run, stage, step, state)


def _evaluates(config: TrainConfig, stage: Stage, step: int) -> bool:
    return step % config.eval_every == 0 or step == stage.stop


def _leave(run: Run) -> None:
    """What is done where the process must end at once, in another thread than the loop's."""
    run.checkpoints.wait()
    step = run.checkpoints.latest_step()
    run.progress.__exit__(None, None, None)
    where = "before its first save" if step is None else f"after step {step}"
    print(f"stopped {where}; the same command goes on", file=sys.stderr, flush=True)


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
    return write_report(workdir, title=workdir.name, config=config, records=records)
