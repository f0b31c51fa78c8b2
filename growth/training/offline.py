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

from growth.certification.tolerances import MEASURED_IN_FLOAT32
from growth.errors import InputError
from growth.expansion.initialization import GradMax
from growth.files import atomic_directory
from growth.models import make_model
from growth.rules.growth_plan import GrowthPlan
from growth.training import mesh as meshes
from growth.training.checkpoints import CheckpointError, Checkpoints
from growth.training.config import MeshConfig, TrainConfig, parse
from growth.training.metrics import FILE_NAME, MetricsWriter
from growth.training.optimization import make_optimizer
from growth.training.run import write_config
from growth.training.schedule import MOMENTS, Stage, flops_spent, stages, training_flops
from growth.training.state import grow_state, restorable_state

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


def is_run(directory: str | os.PathLike) -> bool:
    """Whether a directory is that of a run."""
    return (Path(directory) / "checkpoints").is_dir()


def plan_run(
    source: str | os.PathLike, growth: Mapping[str, Any], step: int | None = None
) -> RunExpansion:
    """Plans a growth step of a run's checkpoint; reads no arrays.

    What the run's schedule would have done after that checkpoint is no longer in the schedule.

    Args:
      source: the run's directory.
      growth: a growth step as in a schedule, without its `step`: the arguments of `growth.grow_to`,
        and maybe `init`, `moments` and `rewarming`.
      step: which checkpoint; None for the newest.

    Raises:
      CheckpointError: there is no such checkpoint.
      InputError: there is no exact way; or what is chosen needs a batch; or the checkpoint has just
        grown; or it is where the learning rate is not stable.
    """
    source = Path(source)
    with Checkpoints(source / "checkpoints") as checkpoints:
        step = checkpoints.latest_step() if step is None else step
        if step is None:
            raise CheckpointError(f"there is no checkpoint in {source}")
        about = checkpoints.metadata(step)
    config, index = parse(about["config"]), about["stage"]
    if step == config.stages[index].start:
        raise InputError(
            f"the checkpoint at step {step} has just grown: train it on before it grows again, or "
            f"grow the checkpoint before to all sizes at once"
        )
    steps = (*config.growth[:index], {"step": step, **growth})
    num_steps = config.num_steps if step < config.num_steps else step + config.num_steps
    # The warm-up is over: it stays as long as it was, though it is another share of the FLOPs now.
    before, after = (
        sum(training_flops(run, config.tokens_per_step))
        for run in (config.stages, stages(config.architecture, steps, num_steps))
    )
    warmup = config.optimizer.warmup * before / after
    grown = dataclasses.replace(
        config,
        growth=steps,
        num_steps=num_steps,
        optimizer=dataclasses.replace(config.optimizer, warmup=warmup),
    )
    expansion = RunExpansion(source, grown)
    if expansion.stage.init.needs(GradMax):
        raise InputError("init says gradmax, but that needs a batch: use it in a run's schedule")
    if expansion.stage.moments == "probe":
        known = ", ".join(name for name in MOMENTS if name != "probe")
        raise InputError(f"moments is 'probe', which needs a batch; here it may be {known}")
    return expansion


def expand_run(expansion: RunExpansion, output: str | os.PathLike, *, seed: int = 0) -> float:
    """Does what was planned.

    Args:
      expansion: what was planned.
      output: the directory of the run to make, which must not exist. It appears when it is whole.
      seed: decides what new entries are; with that of the run they are those of a schedule.

    Returns:
      The largest difference of logits in float32, relative to the largest.

    Raises:
      InputError: `output` exists, or its disk is full, or the function changed. Nothing is left.
    """
    config, stage, plan = expansion.config, expansion.stage, expansion.plan
    tx = make_optimizer(config)
    mesh = meshes.make_mesh(MeshConfig(data=1), batch_size=1)
    output = Path(output).absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    with Checkpoints(expansion.source / "checkpoints") as checkpoints:
        target = restorable_state(plan.source, tx, config.param_dtype, mesh)
        state = checkpoints.restore(stage.start, target)
        place = checkpoints.place(stage.start)
    began = time.perf_counter()
    grown = jax.block_until_ready(grow_state(state, stage, tx, config.param_dtype, mesh, seed))
    seconds = time.perf_counter() - began
    difference = _difference(plan, state.params, grown.params)
    limit = MEASURED_IN_FLOAT32[config.param_dtype]
    if not difference <= limit:
        raise InputError(f"logits differ by {difference:.1e} in float32, more than {limit}")
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(grown))
    about = {
        "architecture": plan.target.to_dict(),
        "stage": stage.index,
        "config": config.to_dict(),
    }
    with atomic_directory(output, num_bytes) as directory:
        with Checkpoints(directory / "checkpoints") as checkpoints:
            checkpoints.save(stage.start, grown, place, about)
        write_config(config, directory)
        text = _CONFIG.format(
            source=expansion.source,
            output=_shown(output),
            step=stage.start,
            config=pprint.pformat(config.to_dict(), width=96, sort_dicts=False),
        )
        (directory / "config.py").write_text(text, encoding="utf-8")
        _carry_metrics(expansion, directory, logit_error=difference, seconds=seconds)
    return difference


def _carry_metrics(expansion: RunExpansion, directory: Path, **measured: float) -> None:
    """The records of the run until now, and one of its growth."""
    config, stage, plan = expansion.config, expansion.stage, expansion.plan
    if (expansion.source / FILE_NAME).is_file():
        shutil.copy(expansion.source / FILE_NAME, directory)
    with MetricsWriter(directory, stage.start, stage.index - 1) as metrics:
        metrics.write(
            "growth",
            stage.start,
            stage=stage.index,
            parameters_before=plan.source.num_parameters,
            parameters_after=plan.target.num_parameters,
            flops=flops_spent(config.stages, stage.start, config.tokens_per_step),
            changes=plan.changes,
            **measured,
        )


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
