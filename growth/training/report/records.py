"""A run as its directory tells it: its config, its records, and where its steps are on an axis."""

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from growth.errors import InputError
from growth.training.config import TrainConfig, parse
from growth.training.report.metrics import FILE_NAME, Record, Records, read_metrics
from growth.training.schedule import Stage, flops_spent

# What losses may be drawn over.
AXES = {
    "step": "steps",
    "tokens": "training tokens",
    "flops": "training FLOPs",
    "seconds": "wall-clock time",
}


class ReportError(InputError):
    """There is nothing to report."""


@dataclasses.dataclass(frozen=True)
class RunRecords:
    """A run.

    Attributes:
      name: what it is called.
      config: all that it is.
      records: what it has written down.
    """

    name: str
    config: TrainConfig
    records: Records

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Its stages."""
        return self.config.stages

    @property
    def step(self) -> int:
        """Optimizer steps taken, as far as records tell."""
        return max((record["step"] for record in self.records), default=0)

    @property
    def reached(self) -> tuple[Stage, ...]:
        """The stages that have begun."""
        last = max((record["stage"] for record in self.records), default=0)
        return self.stages[: last + 1]

    def of(self, kind: str) -> list[Record]:
        """The records of a kind."""
        return [record for record in self.records if record["kind"] == kind]

    def flops_until(self, stage: Stage) -> float | None:
        """FLOPs spent when a stage ended, or so far."""
        ends = [r for r in self.of("growth") if r["stage"] == stage.index + 1]
        mine = [r for r in self.records if r["stage"] == stage.index and r["kind"] != "growth"]
        return last(ends or mine, "flops")

    def places(self, records: Records, axis: str) -> np.ndarray:
        """Where records are on an axis, float64 [number].

        Args:
          records: some of the run's records.
          axis: one of `AXES`.

        Returns:
          Steps, tokens and FLOPs follow from the step. Seconds are those of the training records,
          and between them in proportion; NaN where there are none.
        """
        steps = values(records, "step")
        if axis == "step":
            return steps
        if axis == "tokens":
            return steps * self.config.tokens_per_step
        if axis == "flops":
            per_step = self.config.tokens_per_step
            spent = [flops_spent(self.stages, int(step), per_step) for step in steps]
            return np.array(spent, np.float64)
        known = [r for r in self.of("train") if r.get("seconds") is not None]
        if not known:
            return np.full(len(steps), math.nan)
        return np.interp(steps, values(known, "step"), values(known, "seconds"))


def read_run(workdir: str | os.PathLike[str]) -> RunRecords:
    """The run in a directory.

    Raises:
      ReportError: there is no run in it.
    """
    directory = Path(workdir)
    try:
        config = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ReportError(f"{directory} is no run: its config.json cannot be read") from error
    name = directory.name or directory.resolve().name
    return RunRecords(name, parse(config), read_metrics(directory / FILE_NAME))


def last(records: Records, name: str) -> float | None:
    """The last value of a field that there is."""
    return next((r[name] for r in reversed(records) if r.get(name) is not None), None)


def values(records: Sequence[Record], name: str) -> np.ndarray:
    """One field of all records, float64; NaN where a record lacks it."""
    column = [record.get(name) for record in records]
    return np.array([math.nan if value is None else value for value in column], dtype=np.float64)
