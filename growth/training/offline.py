"""Grows the checkpoint of a run between runs: parameters, optimizer state, place in the data.

The result is the directory of another run, with this growth step as the last one of its schedule:
one that had it from the start, and has just done it. So the optimizer knows how old entries are,
the learning rate rises again, and the report tells the whole story.
"""

import dataclasses
import os
import pprint
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from growth.errors import InputError
from growth.expansion.initialization import GradMax
from growth.files import atomic_directory, write_atomically
from growth.models import logits, make_model
from growth.rules.growth_plan import GrowthPlan
from growth.training.checkpoints import Checkpoints
from growth.training.config import TrainConfig
from growth.training.growth_step import grow_state, require_preserved
from growth.training.optimization import make_optimizer
from growth.training.report.metrics import FILE_NAME, MetricsWriter
from growth.training.run.logging import log_growth
from growth.training.run.restore import load_metadata, load_state, save_state, write_config
from growth.training.run.run import relative_difference
from growth.training.schedule import MOMENTS, Stage
from growth.types import Inputs, Params

_CONFIG = '''"""What `growth expand` made of {source}, at step {step}.

    growth train --config={output}/config.py --workdir={output}
"""

from ml_collections import ConfigDict

from growth.training.config import changeable

CONFIG = {config}


def get_config() -> ConfigDict:
    """The config."""
    return changeable(CONFIG)
'''


@dataclasses.dataclass(frozen=True)
class RunExpansion:
    """A growth step of a run's checkpoint, planned and checked; nothing is written yet.

    Attributes:
      source: the run's directory.
      config: the config of the run that the result belongs to.
    """

    source: Path
    config: TrainConfig

    @property
    def stage(self) -> Stage:
        """The stage that the growth step begins."""
        return self.config.stages[-1]

    @property
    def step(self) -> int:
        """Optimizer steps taken before it."""
        return self.stage.start

    @property
    def plan(self) -> GrowthPlan:
        """The growth step."""
        assert self.stage.plan is not None
        return self.stage.plan


def is_run(directory: str | os.PathLike[str]) -> bool:
    """Whether a directory is that of a run.

    Examples:
      >>> from growth import training
      >>> training.is_run("runs/small"), training.is_run("checkpoint")
      (True, False)

    References:
      The documentation of Orbax on the layout of its directories.
    """
    return (Path(directory) / "checkpoints").is_dir()


def plan_run(
    source: str | os.PathLike[str],
    growth: Mapping[str, Any],
    step: int | None = None,
    *,
    growth_tolerance: float | None = None,
) -> RunExpansion:
    """Plans a growth step of a run's checkpoint; reads no arrays.

    What the run's schedule would have done after that checkpoint is no longer in the schedule.

    Args:
      source: the run's directory.
      growth: a growth step as in a schedule, without its `step`: the arguments of `growth.grow_to`,
        and maybe `init`, `moments` and `rewarming`.
      step: which checkpoint; None for the newest.
      growth_tolerance: how far logits may move, as in `TrainConfig`, from then on; None: what the
        run says.

    Raises:
      CheckpointError: there is no such checkpoint.
      InputError: there is no exact way; or what is chosen needs a batch; or the checkpoint has just
        grown; or it is where the learning rate is not stable.

    Examples:
      >>> from growth import training
      >>> print(training.plan_run("runs/small", dict(mlp_dim=32), step=3).plan)
      mlp_dim 24 → 32

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, section 3.
    """
    source = Path(source)
    with Checkpoints(source / "checkpoints") as checkpoints:
        step = checkpoints.newest_step() if step is None else step
        saved = load_metadata(checkpoints, step)
    config, index = saved.config, saved.stage
    if step == config.stages[index].start:
        raise InputError(
            f"the checkpoint at step {step} has just grown: train it on before it grows again, or "
            f"grow the checkpoint before to all sizes at once"
        )
    steps = (*config.growth[:index], {"step": step, **growth})
    num_steps = config.num_steps if step < config.num_steps else step + config.num_steps
    # The warm-up stays as long as it was, though the first stage may be shorter now.
    optimizer = dataclasses.replace(config.optimizer, warmup_steps=config.warmup_steps)
    grown = dataclasses.replace(
        config,
        growth=steps,
        num_steps=num_steps,
        optimizer=optimizer,
        growth_tolerance=config.growth_tolerance if growth_tolerance is None else growth_tolerance,
    )
    expansion = RunExpansion(source, grown)
    if expansion.stage.init.needs(GradMax):
        raise InputError("init says gradmax, but that needs a batch: use it in a run's schedule")
    if expansion.stage.moments == "probe":
        known = ", ".join(name for name in MOMENTS if name != "probe")
        raise InputError(f"moments is 'probe', which needs a batch; here it may be {known}")
    return expansion


def expand_run(expansion: RunExpansion, output: str | os.PathLike[str], *, seed: int = 0) -> float:
    """Does what was planned.

    Args:
      expansion: what was planned.
      output: the directory of the run to make, which must not exist. It appears when it is whole.
      seed: decides what new entries are; with that of the run they are those of a schedule.

    Returns:
      The largest difference of logits in float32, relative to the largest.

    Raises:
      InputError: `output` exists, or its disk is full. Nothing is left.
      PreservationError: the function changed by more than is accepted. Nothing is written.

    Examples:
      >>> from growth import training
      >>> expansion = training.plan_run("runs/small", dict(mlp_dim=32), step=3)
      >>> training.expand_run(expansion, "runs/larger") < 1e-5
      True
      >>> training.load_model("runs/larger")[0].architecture.mlp_dim
      32

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, table 1.
    """
    config, stage, plan = expansion.config, expansion.stage, expansion.plan
    output = Path(output).absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    with Checkpoints(expansion.source / "checkpoints") as checkpoints:
        state, mesh = load_state(checkpoints, stage.start, config, plan.source)
        place = checkpoints.place(stage.start)
        data = load_metadata(checkpoints, stage.start).data
    began = time.perf_counter()
    tx = make_optimizer(config)
    grown = jax.block_until_ready(grow_state(state, stage, tx, config.param_dtype, mesh, seed))
    seconds = time.perf_counter() - began
    difference = _difference(plan, state.params, grown.params)
    require_preserved(difference, config, stage, option="growth_tolerance")
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(grown))
    with atomic_directory(output, num_bytes) as directory:
        with Checkpoints(directory / "checkpoints") as checkpoints:
            save_state(checkpoints, config, stage, grown, place, data)
        write_config(config, directory)
        text = _CONFIG.format(
            source=expansion.source,
            output=_shown(output),
            step=stage.start,
            config=pprint.pformat(config.to_dict(), width=96, sort_dicts=False),
        )
        write_atomically(directory / "config.py", text)
        # The records of the run until now, and one of its growth.
        if (expansion.source / FILE_NAME).is_file():
            shutil.copy(expansion.source / FILE_NAME, directory)
        with MetricsWriter(directory, stage.start, stage.index - 1) as metrics:
            log_growth(metrics, config, stage, logit_error=difference, seconds=seconds)
    return difference


def _difference(plan: GrowthPlan, old: Params, new: Params) -> float:
    """How far logits move in float32, on random inputs."""
    random = np.random.default_rng(0)
    arch = plan.source
    inputs: Inputs
    if arch.patches is None:
        inputs = random.integers(0, arch.vocab_size, (2, arch.max_length))
    else:
        inputs = random.standard_normal((2, *arch.patches.shape), np.float32)
    with jax.default_matmul_precision("float32"):
        before, after = (
            logits(make_model(a, dtype=np.float32), p, inputs)
            for a, p in ((plan.source, old), (plan.target, new))
        )
    return float(relative_difference(before, after))


def _shown(path: Path) -> Path:
    """A path as a person here would write it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
