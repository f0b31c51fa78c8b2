"""What a run writes down while it trains: a record of steps, evaluations, samples and growths."""

import collections
import datetime
import importlib.metadata
import json
import math
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from growth.training.config import TrainConfig
from growth.training.generation import generate
from growth.training.optimization import rates
from growth.training.report.metrics import MetricsWriter
from growth.training.run.run import Run
from growth.training.run.stopping import DivergedError
from growth.training.schedule import Stage, flops_spent
from growth.training.state import TrainState, make_model
from growth.training.step import Metrics
from growth.version import __version__


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
    loss, grad_norm = (
        float(np.mean([metrics[name] for metrics in values])) for name in ("loss", "grad_norm")
    )
    speed = len(values) * run.config.tokens_per_step / seconds
    run.metrics.clocks.add("training", seconds)
    learned_at = rates(run.config, step - len(values), step)
    run.metrics.tell("train/learning_rate", step - 1, learned_at[:-1].tolist())
    run.metrics.write(
        "train",
        step,
        stage=stage.index,
        loss=loss,
        learning_rate=learned_at[-1],
        grad_norm=grad_norm,
        tokens_per_second=speed,
        flops=run.flops(step),
        seconds=run.metrics.seconds,
        clock=run.metrics.clocks.seconds,
    )
    run.progress.update(
        step,
        loss,
        speed,
        run.flops(step),
        stage.index,
        seconds=seconds,
        others_left=_other_seconds_left(run, stage, step),
    )


def log_evaluation(run: Run, stage: Stage, step: int, state: TrainState) -> None:
    """Evaluates and logs.

    Raises:
      DivergedError: the loss is not finite.
    """
    with run.metrics.clocks.running("evaluation"):
        measured = run.evaluate(stage, state.params)
    if not math.isfinite(measured["loss"]):
        what = f"evaluation loss after step {step} is {measured['loss']}"
        raise _diverged(run, stage, step, what)
    run.metrics.write(
        "eval",
        step,
        stage=stage.index,
        **measured,
        flops=run.flops(step),
        seconds=run.metrics.seconds,
    )


def log_samples(run: Run, stage: Stage, step: int, state: TrainState) -> None:
    """Lets the model continue the configured prompts, for the report, but for those it has."""
    samples = run.config.samples
    for number, prompt in enumerate(samples.prompts):
        if run.metrics.has("sample", step, prompt):
            continue
        assert run.tokenizer is not None
        with run.metrics.clocks.running("sampling"):
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


def log_growth(
    metrics: MetricsWriter,
    config: TrainConfig,
    stage: Stage,
    *,
    logit_error: float,
    seconds: float,
    **losses: float,
) -> None:
    """Logs the growth that a stage began with.

    Args:
      metrics: where to.
      config: the run that the stage belongs to.
      stage: the stage.
      logit_error: how far logits moved, relative to the largest.
      seconds: how long growing took.
      **losses: `loss_before` and `loss_after`, on the evaluation set; nothing where there is none.
    """
    assert stage.plan is not None
    metrics.write(
        "growth",
        stage.start,
        stage=stage.index,
        **losses,
        logit_error=logit_error,
        parameters_before=stage.plan.source.num_parameters,
        parameters_after=stage.plan.target.num_parameters,
        flops=flops_spent(config.stages, stage.start, config.tokens_per_step),
        seconds=seconds,
        changes=stage.plan.changes,
    )


def _other_seconds_left(run: Run, stage: Stage, step: int) -> float:
    """How long all but training will still take, by how long it took in this process."""
    config, mean = run.config, run.metrics.clocks.mean
    ends = [later.stop for later in run.stages[stage.index :]]

    def times(every: int) -> int:
        return (
            config.num_steps // every
            - step // every
            + sum(end > step and end % every != 0 for end in ends)
        )

    return (
        times(config.eval_every) * mean("evaluation")
        + times(config.checkpoint_every) * mean("saving")
        + (len(ends) - 1) * (mean("growth") + mean("compilation"))
    )


def log_start(
    metrics: MetricsWriter, config: TrainConfig, stage: Stage, step: int, data: str
) -> None:
    """Logs which run it is that starts or resumes: when, by whom, on what, with which libraries.

    Args:
      metrics: where to.
      config: the run.
      stage: the stage that it is in.
      step: optimizer steps taken.
      data: its data, in words.
    """
    devices = collections.Counter(f"{d.device_kind} ({d.platform})" for d in jax.devices())
    libraries = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    metrics.tell_config(json.loads(json.dumps(config.to_dict())), step)
    metrics.write(
        "start",
        step,
        stage=stage.index,
        date=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        seed=config.seed,
        devices=", ".join(f"{number} × {kind}" for kind, number in devices.items())
        + (f", {jax.process_count()} processes" if jax.process_count() > 1 else ""),
        data=data,
        versions={
            "growth": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in libraries},
        },
    )


def _diverged(run: Run, stage: Stage, bad_step: int, what: str) -> DivergedError:
    """The error where the parameters after `bad_step` steps are found to be of no use."""
    where = f"in stage {stage.index + 1} of {len(run.stages)}"
    return DivergedError(f"the {what}, {where}", bad_step)
