"""The optimizer of a run, and its learning rate, laid out over training FLOPs."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from growth.optimizer.post_growth import GrowthEvent, correct_by_age, rewarm
from growth.training.config import TrainConfig
from growth.training.config_sections import OptimizerConfig
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


def learning_rate(
    config: OptimizerConfig, stages: Sequence[Stage], tokens_per_step: int
) -> optax.Schedule:
    """The learning rate as a function of the optimizer step: warm-up, stable, decay over FLOPs."""
    share = flops_at(stages, tokens_per_step)
    peak = config.learning_rate
    parts = [
        optax.linear_schedule(0.0, peak, config.warmup),
        optax.constant_schedule(peak),
        optax.linear_schedule(peak, peak * config.final_learning_rate, config.decay),
    ]
    over_flops = optax.join_schedules(parts, [config.warmup, 1 - config.decay])
    # A step learns at the rate of its end, so that the first one does learn.
    return lambda count: over_flops(share(count + 1))


def rewarmed(rate: optax.Schedule, stages: Sequence[Stage]) -> optax.Schedule:
    """A learning rate with its rises after growth, as entries that are not new see it."""
    rising = [stage for stage in stages if stage.rewarming and stage.rewarming.entries == "all"]

    def risen(count: jax.typing.ArrayLike) -> jax.Array:
        share = jnp.ones(())
        for stage in rising:
            assert stage.rewarming is not None
            age = jnp.asarray(count) + 1 - stage.start
            share = share * jnp.where(age > 0, stage.rewarming.share(age), 1.0)
        return rate(count) * share

    return risen


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
        optax.scale_by_learning_rate(learning_rate(settings, stages, config.tokens_per_step)),
        rewarm(events),
    )


def decayed(parameters: Params) -> ParamsLike:
    """Which parameters weight decay acts on: kernels, not gains, biases and embeddings.

    A function of the parameters rather than a tree of answers, for it must also hold after growth.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", parameters)
