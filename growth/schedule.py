"""The growth schedule: when a run grows, and to what.

A schedule is data: a sequence of mappings, each with the `step` after which the run grows and the
architecture fields that are larger from then on. `stages` turns it into the run's stages, and
refuses, before anything has been trained, whatever would not work later.
"""

import dataclasses

from growth.architecture import Architecture
from growth.planning import GrowthPlan


class ScheduleError(ValueError):
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
    """

    index: int
    start: int
    stop: int
    architecture: Architecture
    plan: GrowthPlan | None = None

    @property
    def num_steps(self) -> int:
        """How many optimizer steps the stage lasts."""
        return self.stop - self.start
