"""Grows the checkpoint of a run between runs: parameters, optimizer state, place in the data.

The result is the directory of another run, which trains the larger model from the same step.
"""

import dataclasses
import os
import pprint
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from growth.architecture import Architecture
from growth.errors import InputError
from growth.free import GradMax
from growth.free import choice as read_choice
from growth.models import make_model
from growth.optimizer.newborn import ScaleByAgeState
from growth.planning import GrowthPlan
from growth.staging import staged
from growth.training import mesh as meshes
from growth.training.checkpoints import CheckpointError, Checkpoints
from growth.training.config import MeshConfig, TrainConfig, parse
from growth.training.optimization import make_optimizer
from growth.training.run import write_config
from growth.training.state import grow_state, restorable_state
from growth.transformations import grow_to

# The largest difference of logits, relative to the largest logit, by the dtype of parameters: what
# is multiplied is rounded to it.
_LIMITS = {"float32": 1e-5, "bfloat16": 1e-1}

_CONFIG = '''"""What growth.cli.expand made of {source}, at step {step}.

    python -m growth.cli.train --config={output}/config.py --workdir={output}
"""

from ml_collections import ConfigDict

CONFIG = {config}


def get_config() -> ConfigDict:
    """The config."""
    return ConfigDict(CONFIG)
'''


@dataclasses.dataclass(frozen=True)
class RunExpansion:
    """A growth step of a run's checkpoint, planned and checked; nothing is written yet.

    Attributes:
      source: the run's directory.
      step: which checkpoint.
      config: the config of the run that the result belongs to.
      source_config: that of the run that grows.
      plan: the growth step.
    """

    source: Path
    step: int
    config: TrainConfig
    source_config: TrainConfig
    plan: GrowthPlan


def is_run(directory: str | os.PathLike) -> bool:
    """Whether a directory is that of a run."""
    return (Path(directory) / "checkpoints").is_dir()


def plan_run(
    source: str | os.PathLike, sizes: Mapping[str, Any], step: int | None = None
) -> RunExpansion:
    """Plans a growth step of a run's checkpoint; reads no arrays.

    Args:
      source: the run's directory.
      sizes: the arguments of `growth.grow_to`.
      step: which checkpoint; None for the newest.

    Raises:
      CheckpointError: there is no such checkpoint.
      InputError: there is no exact way; or the run's optimizer remembers earlier growth steps.
    """
    source = Path(source)
    with Checkpoints(source / "checkpoints") as checkpoints:
        step = checkpoints.latest_step() if step is None else step
        if step is None:
            raise CheckpointError(f"there is no checkpoint in {source}")
        about = checkpoints.metadata(step)
    config = parse(about["config"])
    plan = grow_to(**sizes)(Architecture.from_dict(about["architecture"]))
    if not plan.changes:
        raise InputError(f"nothing would grow: the checkpoint has {plan.source} already")
    left = config.num_steps - step
    grown = dataclasses.replace(
        config,
        architecture=plan.target,
        growth=(),
        num_steps=config.num_steps if left > 0 else step + config.num_steps,
    )
    for stage in config.stages[1:]:
        young = stage.rewarming is not None and step < stage.start + stage.rewarming.steps
        if stage.start < step and (stage.moments == "age" or young):
            raise InputError(
                f"the optimizer goes by the age of what was added at step {stage.start}, which a "
                f"run that begins with all of it cannot: put this growth step into the schedule "
                f"of {source} instead"
            )
    return RunExpansion(source, step, grown, config, plan)


def expand_run(
    expansion: RunExpansion,
    output: str | os.PathLike,
    *,
    free: Any = "fresh",
    seed: int = 0,
    moments: str = "zeros",
) -> float:
    """Does what was planned.

    Args:
      expansion: what was planned.
      output: the directory of the run to make, which must not exist. It appears when it is whole.
      free, seed: what new entries are, and what decides them; as for `growth.expand`.
      moments: how second moments of new entries begin; as for `growth.expand_optimizer_state`.

    Returns:
      The largest difference of logits in float32, relative to the largest.

    Raises:
      InputError: `output` exists, or its disk is full; or `free` needs a loss. Or the function
        changed, and nothing is left.
    """
    chosen = read_choice(free)
    if chosen.needs(GradMax):
        raise InputError("free says gradmax, but that needs a batch: use it in a run's schedule")
    plan, config = expansion.plan, expansion.config
    tx = make_optimizer(expansion.source_config)
    mesh = meshes.make_mesh(MeshConfig(data=1), batch_size=1)
    output = Path(output).absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    with Checkpoints(expansion.source / "checkpoints") as checkpoints:
        target = restorable_state(plan.source, tx, config.param_dtype, mesh)
        state = checkpoints.restore(expansion.step, target)
        place = checkpoints.place(expansion.step)
    key = jax.random.key(seed)
    grown = grow_state(state, plan, tx, config.param_dtype, mesh, key, free=chosen, moments=moments)
    # The new run has no growth steps behind it, so nothing in it counts steps since then.
    states = (optax.EmptyState() if isinstance(s, ScaleByAgeState) else s for s in grown.opt_state)
    grown = dataclasses.replace(grown, opt_state=tuple(states))
    difference = _difference(plan, state.params, grown.params)
    limit = _LIMITS[config.param_dtype]
    if not difference <= limit:
        raise InputError(f"logits differ by {difference:.1e} in float32, more than {limit}")
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(grown))
    about = {"architecture": plan.target.to_dict(), "stage": 0, "config": config.to_dict()}
    with staged(output, num_bytes) as directory:
        with Checkpoints(directory / "checkpoints") as checkpoints:
            checkpoints.save(expansion.step, grown, place, about)
        write_config(config, directory)
        text = _CONFIG.format(
            source=expansion.source,
            output=_shown(output),
            step=expansion.step,
            config=pprint.pformat(config.to_dict(), width=96, sort_dicts=False),
        )
        (directory / "config.py").write_text(text, encoding="utf-8")
    return difference


def _difference(plan: GrowthPlan, old: Any, new: Any) -> float:
    random = np.random.default_rng(0)
    arch = plan.source
    inputs: np.ndarray
    if arch.patches is None:
        inputs = random.integers(0, arch.vocab_size, (2, arch.max_length))
    else:
        inputs = random.standard_normal((2, *arch.patches.shape), np.float32)
    with jax.default_matmul_precision("float32"):
        before, after = (
            np.asarray(make_model(a, dtype=np.float32).apply({"params": p}, inputs))
            for a, p in ((plan.source, old), (plan.target, new))
        )
    return float(np.abs(after - before).max() / np.abs(before).max())


def _shown(path: Path) -> Path:
    """A path as a person here would write it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
