"""What a person sees while a run trains: one status line, on a terminal under a live bar."""

import collections
import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from growth.training.formatting import format_count, format_duration, format_power

# Without a terminal, seconds between two status lines.
_QUIET_SECONDS = 10.0

# How many of the last updates the speed is measured over.
_SPEED_UPDATES = 50


class Progress:
    """Shows how far a run is; a context manager.

    How far it is, and how long it will still take, is measured in FLOPs, not in steps, because the
    steps of a later stage cost more. On a terminal a bar and the status line stay at the bottom;
    elsewhere the status line is printed now and then, without control codes.

    Args:
      total_steps: optimizer steps of the whole run.
      total_flops: training FLOPs of the whole run.
      num_stages: stages of the whole run.
      console: where to print; standard output if not given.
      clock: the time in seconds.
    """

    def __init__(
        self,
        total_steps: int,
        total_flops: float,
        num_stages: int,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total_steps = total_steps
        self._total_flops = total_flops
        self._num_stages = num_stages
        self._console = console or Console()
        self._clock = clock
        # Seconds and FLOPs of the last updates.
        self._spent: collections.deque[tuple[float, float]] = collections.deque(
            maxlen=_SPEED_UPDATES
        )
        self._flops: float | None = None
        self._stage = -1
        self._others_left = 0.0
        self._share = 0.0
        self._status = ""
        self._printed_status = ""
        self._print_time = -math.inf
        self._live: Live | None = None
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(
                get_renderable=self._render, console=self._console, refresh_per_second=4
            )

    def update(
        self,
        step: int,
        loss: float,
        tokens_per_second: float,
        flops: float,
        stage: int,
        *,
        seconds: float,
        others_left: float = 0.0,
    ) -> None:
        """Takes note of where the run is.

        Args:
          step: optimizer steps taken.
          loss: training loss.
          tokens_per_second: training speed.
          flops: training FLOPs spent since the run's start.
          stage: 0 for the first.
          seconds: spent on training, and on nothing else, since the update before.
          others_left: seconds that all but training is expected to take until the run ends.
        """
        if stage != self._stage:  # its steps cost something else
            self._spent.clear()
        if self._flops is not None:
            self._spent.append((seconds, flops - self._flops))
        self._flops, self._stage, self._others_left = flops, stage, others_left
        self._share = flops / self._total_flops
        self._status = "  ".join(
            (
                f"stage {stage + 1}/{self._num_stages}",
                f"step {step:,}/{self._total_steps:,}",
                f"loss {loss:.4f}",
                f"{format_count(tokens_per_second)} tok/s",
                f"{format_power(flops)} FLOPs",
            )
        )
        if self._live is None and self._clock() - self._print_time >= _QUIET_SECONDS:
            self._print_status()

    @property
    def seconds_left(self) -> float | None:
        """Estimate of the run's remaining seconds.

        FLOPs that are left over FLOPs that training spends in a second, and all else. None until
        two updates have been seen.
        """
        seconds = sum(seconds for seconds, _ in self._spent)
        flops = sum(flops for _, flops in self._spent)
        if self._flops is None or seconds <= 0 or flops <= 0:
            return None
        left = max(self._total_flops - self._flops, 0.0)
        return left * seconds / flops + self._others_left

    def note(self, line: str) -> None:
        """Prints a line that stays, above the bar."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _print_status(self) -> None:
        self.note(f"{self._status}  {self._how_far()}")
        self._printed_status = self._status
        self._print_time = self._clock()

    def _how_far(self) -> str:
        seconds = self.seconds_left
        left = "" if seconds is None else f"  {format_duration(seconds)} left"
        return f"{self._share:.0%}{left}"

    def _render(self) -> RenderableType:
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(ratio=1)
        bar.add_column(justify="right")
        bar.add_row(ProgressBar(total=1.0, completed=self._share), self._how_far())
        return Group(bar, Text(self._status, no_wrap=True, overflow="ellipsis"))

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
        elif self._status != self._printed_status:
            self._print_status()
