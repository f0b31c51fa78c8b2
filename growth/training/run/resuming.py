"""Where a run goes on: the newest checkpoint that is whole, or the one that was asked for."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import grain
import optax
from jax.sharding import Mesh

from growth.training.checkpoints import CheckpointError, Checkpoints, DamagedError
from growth.training.config import TrainConfig
from growth.training.report.metrics import FILE_NAME, read_metrics
from growth.training.run.past import require_same_past
from growth.training.schedule import Stage
from growth.training.state import TrainState, restorable_state


@dataclasses.dataclass(frozen=True)
class Resumption:
    """A checkpoint, loaded; and what is newer than it, which it takes the place of.

    Attributes:
      step: optimizer steps taken.
      stage: the stage that the state is in. At the very end of a stage that is the stage, not yet
        the next one; but what was grown between runs is saved at the very start of one.
      state: the state.
      changes: what differs in the config, in words.
      damaged: newer checkpoints that are not whole, with what is wrong.
      undone: newer checkpoints that the run goes back behind.
    """

    step: int
    stage: Stage
    state: TrainState
    changes: tuple[str, ...]
    damaged: dict[int, str]
    undone: tuple[int, ...]

    def set_newer_aside(self, checkpoints: Checkpoints) -> list[str]:
        """Renames what is newer, so that it is not in the way; says so, in a line each."""
        lines = []
        for step in reversed((*self.undone, *self.damaged)):
            path = checkpoints.set_aside(step, "damaged" if step in self.damaged else "undone")
            why = self.damaged.get(step, f"the run goes back behind the checkpoint at step {step}")
            lines.append(f"{why}; it is {path.name} now")
        return lines


def resume(
    config: TrainConfig,
    workdir: Path,
    checkpoints: Checkpoints,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    batches: grain.DatasetIterator,
    data: str,
    step: int | None = None,
) -> Resumption | None:
    """Loads what a run goes on from. Changes nothing on the disk.

    Args:
      config: the run.
      workdir: its directory.
      checkpoints: its checkpoints.
      tx: its optimizer.
      mesh: the devices.
      batches: the training data, which is set to its place.
      data: the digest of the data.
      step: which checkpoint; None for the newest that is whole.

    Returns:
      The checkpoint; None where the run has not saved yet.

    Raises:
      CheckpointError: there is no such checkpoint, none is whole, or all that a run has saved is
        gone; the message says what is wrong.
      ConfigError: the config has another past than the checkpoint.
    """
    folders = checkpoints.folders()
    damaged: dict[int, str] = {}
    for at in reversed(folders) if step is None else (step,):
        try:
            about = checkpoints.metadata(at)
            changes = require_same_past(config, data, about=about, step=at, workdir=workdir)
            stage = config.stages[about["stage"]]
            target = restorable_state(stage.architecture, tx, config.param_dtype, mesh)
            state = checkpoints.restore(at, target, batches)
        except DamagedError as error:
            if step is not None:
                raise
            damaged[at] = str(error)
            continue
        undone = tuple(other for other in folders if other > at and other not in damaged)
        return Resumption(at, stage, state, changes, damaged, undone)
    if damaged:
        raise CheckpointError(
            f"no checkpoint of {workdir} is whole: {'; '.join(damaged.values())}. Put back a whole "
            f"one, or give another workdir to begin anew"
        )
    _require_never_saved(config, workdir)
    return None


def _require_never_saved(config: TrainConfig, workdir: Path) -> None:
    """Refuses to begin anew where a run has saved whose checkpoints are gone.

    The first save may have been under way when the run was killed; at the second one it was over.
    """
    reached = max((r["step"] for r in read_metrics(workdir / FILE_NAME)), default=0)
    if reached >= _saves(config, config.stages)[1]:
        raise CheckpointError(
            f"{workdir / FILE_NAME} says that the run has taken {reached} steps, but there is no "
            f"checkpoint in {workdir / 'checkpoints'}. Put the checkpoints back; or, to begin "
            f"anew, give another workdir or move {FILE_NAME} away"
        )


def _saves(config: TrainConfig, stages: Sequence[Stage]) -> list[float]:
    """The first two steps at which a run saves; infinity where there is no second one."""
    every = range(config.checkpoint_every, config.num_steps, config.checkpoint_every)
    return sorted({*every[:2], *(stage.stop for stage in stages), float("inf")})[:2]
