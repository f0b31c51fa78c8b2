"""A growth step of a run: the state is carried into the next stage, and the function is measured.

A growth that changes the function by more than `growth_tolerance` is refused, in a run and between
runs alike: what was there before stays, and nothing of the larger state is kept.
"""

import functools
import math
import time
from collections.abc import Callable

import jax
import optax
from jax.sharding import Mesh

from growth.certification.certificate import CertificateError
from growth.certification.certification import certify
from growth.expansion.parameters import expand
from growth.optimizer import expand_optimizer_state
from growth.rules.tolerances import MEASURED_IN_FLOAT32
from growth.training.config import TrainConfig
from growth.training.formatting import format_count
from growth.training.run.logging import log_growth
from growth.training.run.run import Run, relative_difference
from growth.training.schedule import Stage
from growth.training.state import TrainState, state_shardings
from growth.training.step import batch_logits, batch_loss, batch_residual_stream, cross_entropy
from growth.types import Params


class PreservationError(CertificateError):
    """A growth changed the function by more than the run accepts; the message says what to do.

    It is for the caller to mend, like a certificate that fails: by other code, or by saying with
    `growth_tolerance` how much is accepted. So commands exit with 2, and not as where training
    diverges.
    """


def grow(run: Run, stage: Stage, state: TrainState) -> TrainState:
    """Carries the state of a run into a stage, and measures that the function stays the same.

    The old state is deleted, for its checkpoint at the end of the stage before is there.

    Raises:
      CertificateError: the config says that growth is certified, and a promise is broken.
      PreservationError: logits moved further than the run accepts. Nothing is logged of the growth.
    """
    assert stage.plan is not None
    config, before = run.config, run.stages[stage.index - 1]
    loss_before, logits_before = run.measure(before, state.params)

    began = time.perf_counter()
    probe_loss = functools.partial(batch_loss, run.model(stage), batch=run.probe)
    grown = grow_state(
        state, stage, run.tx, config.param_dtype, run.mesh, config.seed, loss=probe_loss
    )
    jax.block_until_ready(grown)
    seconds = time.perf_counter() - began
    if config.certify:
        _certify(run, stage, state.params, grown)
    for leaf in jax.tree.leaves((state.params, state.opt_state)):
        leaf.delete()  # donation frees nothing here, for no shape stays the same

    loss_after, logits_after = run.measure(stage, grown.params)
    difference = float(relative_difference(logits_before, logits_after))
    require_preserved(difference, config, stage, option="--config.growth_tolerance")
    log_growth(
        run.metrics,
        config,
        stage,
        loss_before=loss_before,
        loss_after=loss_after,
        logit_error=difference,
        seconds=seconds,
    )
    sizes = before.architecture.num_parameters, stage.architecture.num_parameters
    run.progress.note(
        f"step {stage.start}  grew {format_count(sizes[0])} → {format_count(sizes[1])}  "
        f"eval loss {loss_before:.6f} → {loss_after:.6f}"
    )
    return grown


def grow_state(
    state: TrainState,
    stage: Stage,
    tx: optax.GradientTransformation,
    param_dtype: str,
    mesh: Mesh,
    seed: int,
    loss: Callable[[Params], jax.Array] | None = None,
) -> TrainState:
    """Carries every leaf of a state into a stage, on the mesh, without the host.

    Args:
      state: the state at the end of the stage before.
      stage: says what grows, what new entries are, and how they join the optimizer.
      tx: the optimizer.
      param_dtype: dtype of the parameters.
      mesh: where the state is.
      seed: decides what new entries are, together with the step at which the stage begins.
      loss: of a batch, at the larger parameters; for what takes its gradient.
    """
    assert stage.plan is not None
    plan, moments = stage.plan, "zeros" if stage.moments == "age" else stage.moments

    def grown(state: TrainState, key: jax.Array) -> TrainState:
        params = expand(state.params, plan, key=key, init=stage.init, loss=loss)
        gradient = jax.grad(loss)(params) if moments == "probe" and loss else None
        opt_state = expand_optimizer_state(
            state.opt_state,
            plan,
            tx=tx,
            params=state.params,
            grown=params,
            moments=moments,
            gradient=gradient,
        )
        return TrainState(state.step, params, opt_state)

    shardings = state_shardings(plan.target, tx, param_dtype, mesh)
    key = jax.random.fold_in(jax.random.key(seed), stage.start)
    return jax.jit(grown, out_shardings=shardings)(state, key)


def require_preserved(difference: float, config: TrainConfig, stage: Stage, *, option: str) -> None:
    """Refuses a growth that changes the function.

    Args:
      difference: how far logits moved in float32, relative to the largest.
      config: the run, which says how far they may.
      stage: the stage that the growth begins.
      option: what says so where the caller is, for the message.

    Raises:
      PreservationError: they moved further, or are not finite.
    """
    limit = config.growth_tolerance
    source = "growth_tolerance" if limit else f"growth promises for {config.param_dtype}"
    limit = limit or MEASURED_IN_FLOAT32[config.param_dtype]
    if difference <= limit:
        return
    accepting = ""
    if math.isfinite(difference):
        # Rounded up, so that it accepts this difference.
        step = 10.0 ** (math.floor(math.log10(difference)) - 1)
        accepting = f", or accept it with {option}={math.ceil(difference / step) * step:.1e}"
    raise PreservationError(
        f"the growth at step {stage.start}, which begins stage {stage.index + 1}, changes the "
        f"function: logits move by {difference:.1e} of the largest in float32, and {source} is "
        f"{limit:.1e}. Nothing of it is kept, and the checkpoint at step {stage.start} is as it "
        f"was: go on from there once what changes the function is mended{accepting}"
    )


def _certify(run: Run, stage: Stage, params: Params, grown: TrainState) -> None:
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
