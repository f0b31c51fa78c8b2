"""What a run writes down while it trains: a record of steps, evaluations, samples and growths."""

import math
import time
from collections.abc import Sequence

import jax
import numpy as np

from growth.training.config import TrainConfig
from growth.training.generation import generate
from growth.training.optimization import learning_rate
from growth.training.report.metrics import MetricsWriter
from growth.training.run.run import Run
from growth.training.run.stopping import DivergedError
from growth.training.schedule import Stage, flops_spent
from growth.training.state import TrainState, make_model
from growth.training.step import Metrics


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
    run.metrics.write(
        "train",
        step,
        stage=stage.index,
        loss=loss,
        learning_rate=learning_rate(run.config)(step - 1),
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


def _diverged(run: Run, stage: Stage, bad_step: int, what: str) -> DivergedError:
    """The error where the parameters after `bad_step` steps are found to be of no use."""
    good = [step for step in run.checkpoints.steps() if step < bad_step]
    return DivergedError(
        f"the {what}, in stage {stage.index + 1} of {len(run.stages)}; last good checkpoint: "
        f"{f'step {good[-1]}' if good else 'none'}. A lower optimizer.learning_rate or "
        f"optimizer.clip_norm may help"
    )
