"""The optimizer of a run, and its learning rate."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from growth.optimizer.post_growth import GrowthEvent, correct_by_age, rewarm
from growth.training.config import TrainConfig
from growth.training.schedule import Stage, training_flops
from growth.types import Params, ParamsLike


def flops_at(stages: Sequence[Stage], tokens_per_step: int) -> optax.Schedule:
    """The share of the run's training FLOPs that is spent after a number of optimizer steps.

    All stages are known beforehand, so this is a piecewise linear function of the step.
    """
    steps = [stages[0].start, *(stage.stop for stage in stages)]
    costs = training_flops(stages, tokens_per_step)
    spent = [0.0, *itertools.accumulate(costs)]
    shares = [cost / spent[-1] for cost in spent]
    return lambda count: jnp.interp(
        jnp.asarray(count, jnp.float32), jnp.asarray(steps, jnp.float32), jnp.asarray(shares)
    )


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """The learning rate of entries that are not new, as a function of the optimizer step.

    All that is shown and logged is this: the warm-up over steps, the decay over FLOPs, and the
    rises after growth. It takes an array of steps too.
    """
    base = _base_rate(config)
    rising = [s for s in config.stages if s.rewarming and s.rewarming.entries == "all"]

    def rate(count: jax.typing.ArrayLike) -> jax.Array:
        share = jnp.ones(())
        for stage in rising:
            assert stage.rewarming is not None
            age = jnp.asarray(count) + 1 - stage.start
            share = share * jnp.where(age > 0, stage.rewarming.share(age), 1.0)
        return base(count) * share

    return rate


def rates(config: TrainConfig, start: int = 0, stop: int | None = None) -> np.ndarray:
    """The learning rates of steps, float32 [stop - start]: what each of them learns at.

    Args:
      config: the run.
      start: the first of them, 0 being the first of the run.
      stop: the step after the last; None: the end of the run.
    """
    steps = np.arange(start, config.num_steps if stop is None else stop)
    return np.asarray(learning_rate(config)(steps))


def _base_rate(config: TrainConfig) -> optax.Schedule:
    """The learning rate without its rises after growth, which the optimizer has from `rewarm`."""
    settings, warmup = config.optimizer, max(config.warmup_steps, 1)
    spent = flops_at(config.stages, config.tokens_per_step)
    fall = optax.linear_schedule(1.0, settings.final_learning_rate, settings.decay)

    def rate(count: jax.typing.ArrayLike) -> jax.Array:
        # A step learns at the rate of its end, so that the first one does learn.
        step = jnp.asarray(count) + 1
        share = fall(spent(step) - (1 - settings.decay)) if settings.decay else 1.0
        return settings.learning_rate * jnp.minimum(step / warmup, 1.0) * share

    return rate


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """AdamW behind clipping by global norm. One optimizer serves all stages of a run."""
    settings, stages = config.optimizer, config.stages
    events = [
        GrowthEvent(stage.start, stage.plan, stage.moments == "age", stage.rewarming)
        for stage in stages
        if stage.plan is not None
    ]
    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.scale_by_adam(b1=settings.b1, b2=settings.b2, eps=settings.eps),
        correct_by_age(events, b1=settings.b1, b2=settings.b2),
        optax.add_decayed_weights(settings.weight_decay, decayed),
        optax.scale_by_learning_rate(_base_rate(config)),
        rewarm(events),
    )


def decayed(parameters: Params) -> ParamsLike:
    """Which parameters weight decay acts on: kernels, not gains, biases and embeddings.

    A function of the parameters rather than a tree of answers, for it must also hold after growth.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", parameters)
