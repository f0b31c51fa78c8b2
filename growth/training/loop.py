"""The training loop: start or resume, train a stage, grow, train the next."""

import functools
import os
import time
from pathlib import Path
from typing import Any

import jax

from growth.certification.certification import certify
from growth.training.config import TrainConfig
from growth.training.metrics import FILE_NAME, read_metrics
from growth.training.progress import format_count
from growth.training.report.page import write_report
from growth.training.run import (
    Run,
    log_evaluation,
    log_samples,
    log_steps,
    open_run,
    relative_difference,
    save,
)
from growth.training.schedule import Stage
from growth.training.state import TrainState, grow_state, state_shardings
from growth.training.step import (
    Metrics,
    batch_logits,
    batch_residual_stream,
    cross_entropy,
    loss,
    make_train_step,
)


def train(config: TrainConfig, workdir: str | os.PathLike) -> Path:
    """Trains a run to its end, or until it is asked to stop; resumes what is in `workdir`.

    Args:
      config: the run.
      workdir: its directory, for checkpoints, metrics.jsonl, tensorboard and report.html.

    Returns:
      The path of the report.

    Raises:
      ConfigError, DataError, MeshError, CheckpointError: the run cannot start; nothing is written.
      DivergedError: a loss or its gradient is not finite.
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
                save(run, stage, step, state)
            pending, began = [], time.perf_counter()
    return state


def grow(run: Run, stage: Stage, state: TrainState) -> TrainState:
    """Carries the state into a stage, and measures that the function stays the same."""
    assert stage.plan is not None
    before = run.stages[stage.index - 1]
    loss_before, logits_before = run.measure(before, state.params)

    began = time.perf_counter()
    probe_loss = functools.partial(loss, run.model(stage), batch=run.probe)
    config = run.config
    grown = grow_state(
        state, stage, run.tx, config.param_dtype, run.mesh, config.seed, loss=probe_loss
    )
    jax.block_until_ready(grown)
    seconds = time.perf_counter() - began
    if run.config.certify:
        _certify(run, stage, state.params, grown)
    for leaf in jax.tree.leaves((state.params, state.opt_state)):
        leaf.delete()  # donation frees nothing here, for no shape stays the same

    loss_after, logits_after = run.measure(stage, grown.params)
    sizes = before.architecture.num_parameters, stage.architecture.num_parameters
    run.metrics.write(
        "growth",
        stage.start,
        stage=stage.index,
        loss_before=loss_before,
        loss_after=loss_after,
        logit_error=relative_difference(logits_before, logits_after),
        parameters_before=sizes[0],
        parameters_after=sizes[1],
        flops=run.flops(stage.start),
        seconds=seconds,
        changes=stage.plan.changes,
    )
    run.progress.note(
        f"step {stage.start}  grew {format_count(sizes[0])} → {format_count(sizes[1])}  "
        f"eval loss {loss_before:.6f} → {loss_after:.6f}"
    )
    return grown


def _certify(run: Run, stage: Stage, params: Any, grown: TrainState) -> None:
    """Writes the certificate of a growth, and ends the run where a promise is broken."""
    plan = stage.plan
    assert plan is not None
    batch = jax.tree.map(lambda batches: batches[0], run.eval_set)
    certificate = certify(
        params,
        plan,
        apply=batch_logits,
        grown=grown.params,
        batch=batch,
        loss=lambda params: cross_entropy(batch_logits(plan.target, params, batch), batch),
        residual_stream=batch_residual_stream,
        tx=run.tx,
        opt_state=grown.opt_state,
        learning_rate=run.config.optimizer.learning_rate,
    )
    if jax.process_index() == 0:
        certificate.write(run.workdir / "certificates" / f"step_{stage.start}.json")
    certificate.require()


def _compiled_step(run: Run, stage: Stage, state: TrainState) -> Any:
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
