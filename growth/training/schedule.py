"""The growth schedule: when a run grows, and to what.

A schedule is data: a sequence of mappings, each with the `step` after which the run grows and the
sizes that are larger from then on; `init` may say what new entries are, `moments` and `rewarming`
how they join the optimizer. `stages` turns it into the run's stages, and refuses, before anything
has been trained, whatever would not work later.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from growth.architecture import Architecture
from growth.errors import InputError
from growth.expansion.initialization import FRESH, InitPolicy, init_policy
from growth.optimizer.moment_init import POLICIES
from growth.optimizer.post_growth import Rewarming
from growth.rules.composition import grow_to
from growth.rules.growth_plan import GrowthPlan

_SIZES = tuple(field.name for field in dataclasses.fields(grow_to))
_OPTIONS = ("init", "moments", "rewarming")

# How second moments of new entries may begin; the first is the default.
MOMENTS = (*POLICIES, "age")

# How the learning rate rises at the start of a stage where nobody says: after growth, the one that
# showed no spike in docs/moments.md. A short stage spends no more than this share of its steps so.
REWARMING = Rewarming(steps=100)
_LARGEST_SHARE = 1 / 4


class ScheduleError(InputError):
    """A growth schedule cannot be carried out; the message names the stage."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of a run that trains one architecture.

    Attributes:
      index: 0 for the first stage.
      start: optimizer steps taken before this stage.
      stop: optimizer steps taken when this stage ends.
      architecture: what is trained.
      plan: how the stage began; None for the first.
      init: what new entries were where any value keeps the function.
      moments: how second moments of new entries began: "zeros", "mean" or "probe", as for
        `growth.expand_optimizer_state`; or "age": at zero, corrected by their own age.
      rewarming: how the learning rate rises after growth; None: not at all.

    Examples:
      >>> import growth
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16
      ... )
      >>> from growth.training import stages
      >>> first, second = stages(small, (dict(step=100, mlp_dim=32, init="copy"),), num_steps=300)
      >>> first.num_steps, second.num_steps
      (100, 200)
      >>> print(second.plan)
      mlp_dim 16 → 32
      >>> second.rewarming.steps
      50

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, section 3.
      docs/moments.md, for how the learning rate rises.
    """

    index: int
    start: int
    stop: int
    architecture: Architecture
    plan: GrowthPlan | None = None
    init: InitPolicy = FRESH
    moments: str = MOMENTS[0]
    rewarming: Rewarming | None = None

    @property
    def num_steps(self) -> int:
        """How many optimizer steps the stage lasts."""
        return self.stop - self.start


def stages(
    architecture: Architecture, growth: Sequence[Mapping[str, Any]], num_steps: int
) -> tuple[Stage, ...]:
    """The stages of a run.

    Args:
      architecture: what the run starts with.
      growth: the growth steps, in order. Each has a `step`, the arguments of `growth.grow_to`, and
        maybe `init`, as for `growth.expand`, `moments` and `rewarming`, as in `Stage`:
        `dict(step=600, num_layers=6, init="copy", rewarming=dict(steps=50))`. Where rewarming is
        not said it is `REWARMING`, over at most a quarter of the stage.
      num_steps: optimizer steps of the whole run.

    Raises:
      ScheduleError: a growth step is out of order, changes nothing, or is impossible.

    Examples:
      >>> import growth
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16
      ... )
      >>> from growth.training import stages
      >>> first, second = stages(small, (dict(step=100, mlp_dim=32, init="copy"),), num_steps=300)
      >>> second.architecture.mlp_dim
      32
      >>> stages(small, (dict(step=100, mlp_dims=32),), num_steps=300)
      Traceback (most recent call last):
          ...
      growth...ScheduleError: growth[0] ...: 'mlp_dims' is ...; did you mean mlp_dim?

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, section 3.
      docs/moments.md, for how the learning rate rises.
    """
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ScheduleError(f"num_steps is {num_steps!r}, but at least 1 step must be trained")
    result = [Stage(0, 0, num_steps, architecture)]
    for index, entry in enumerate(growth):
        last = result[-1]
        where = f"growth[{index}] (which begins stage {index + 2})"
        _check_names(entry, where)
        step = entry["step"]
        if isinstance(step, bool) or not isinstance(step, int) or not last.start < step < num_steps:
            raise ScheduleError(
                f"{where}: step is {step!r}, but it must be a whole number after "
                f"{last.start}, where the stage before begins, and before {num_steps}, where the "
                f"run ends"
            )
        sizes = {name: size for name, size in entry.items() if name in _SIZES}
        try:
            plan = grow_to(**sizes)(last.architecture)
            options = _options(entry)
        except InputError as error:
            raise ScheduleError(f"{where}: {error}") from error
        if plan.source == plan.target:
            raise ScheduleError(f"{where}: {sizes} changes nothing in {last.architecture}")
        result[-1] = dataclasses.replace(last, stop=step)
        result.append(Stage(index + 1, step, num_steps, plan.target, plan, **options))
    return tuple(
        stage if stage.plan is None or "rewarming" in growth[stage.index - 1] else _rewarmed(stage)
        for stage in result
    )


def training_flops(stages: Sequence[Stage], tokens_per_step: int) -> tuple[float, ...]:
    """The training FLOPs of each stage, with sequences of `max_length` tokens."""
    return tuple(
        stage.num_steps * tokens_per_step * stage.architecture.training_flops_per_token()
        for stage in stages
    )


def _options(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What a growth step says besides its sizes."""
    moments, rewarming = entry.get("moments", MOMENTS[0]), entry.get("rewarming")
    if moments not in MOMENTS:
        raise ScheduleError(f"moments is {moments!r}, but it must be one of {', '.join(MOMENTS)}")
    if isinstance(rewarming, Mapping):
        known = [field.name for field in dataclasses.fields(Rewarming)]
        if "steps" not in rewarming or set(rewarming) - set(known):
            raise ScheduleError(
                f"rewarming is {dict(rewarming)}, but it must have steps, and may have "
                f"{', '.join(known[1:])}"
            )
        rewarming = Rewarming(**rewarming)
    if not isinstance(rewarming, Rewarming | None):
        raise ScheduleError(
            f"rewarming is {rewarming!r}, but it must be a mapping with steps, or None"
        )
    return {
        "init": init_policy(entry.get("init", FRESH)),
        "moments": moments,
        "rewarming": rewarming,
    }


def rise_steps(stage: Stage) -> int:
    """Over how many steps the learning rate rises at the start of a stage, where nobody says."""
    return min(REWARMING.steps, max(1, int(stage.num_steps * _LARGEST_SHARE)))


def _rewarmed(stage: Stage) -> Stage:
    """A stage with the default rewarming."""
    rewarming = dataclasses.replace(REWARMING, steps=rise_steps(stage))
    return dataclasses.replace(stage, rewarming=rewarming)


def _check_names(entry: Mapping[str, Any], where: str) -> None:
    if not isinstance(entry, Mapping):
        raise ScheduleError(
            f"{where} is {entry!r}, but it must be a mapping, with a step and sizes"
        )
    if "step" not in entry:
        raise ScheduleError(f"{where}: step is missing")
    known = ("step", *_OPTIONS, *_SIZES)
    for name in entry:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"it may have {', '.join(known)}"
            raise ScheduleError(f"{where}: {name!r} is nothing that a growth step has; {hint}")


def flops_spent(stages: Sequence[Stage], step: int, tokens_per_step: int) -> float:
    """The training FLOPs that a run has spent after `step` optimizer steps."""
    return sum(
        max(0, min(step, stage.stop) - stage.start)
        * tokens_per_step
        * stage.architecture.training_flops_per_token()
        for stage in stages
    )
