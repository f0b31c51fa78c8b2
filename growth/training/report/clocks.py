"""What a run spends its time on, each activity by a clock of its own.

So the speed of training is that of training alone, and what is left can be foreseen although a run
compiles, evaluates, saves and grows in between.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping

ACTIVITIES = ("training", "compilation", "evaluation", "sampling", "saving", "growth")


class Clocks:
    """A clock for each activity. One runs at a time: what is begun within another stops that.

    Args:
      spent: seconds that the run has spent before, by activity.
      clock: the time in seconds.
    """

    def __init__(
        self,
        spent: Mapping[str, float] | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._seconds = dict.fromkeys(ACTIVITIES, 0.0) | dict(spent or {})
        self._measured = dict.fromkeys(ACTIVITIES, (0, 0.0))
        self._clock = clock
        self._inner = 0.0  # seconds that what has ended within the running activity took

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent since the run's start, by activity."""
        return dict(self._seconds)

    def mean(self, activity: str) -> float:
        """Seconds that an activity has taken in this process, each time; 0 if it has not been."""
        count, seconds = self._measured[activity]
        return seconds / count if count else 0.0

    def add(self, activity: str, seconds: float) -> None:
        """Counts seconds that have been measured elsewhere."""
        self._seconds[activity] += seconds
        count, before = self._measured[activity]
        self._measured[activity] = count + 1, before + seconds

    @contextlib.contextmanager
    def running(self, activity: str) -> Iterator[None]:
        """Clocks what is done within."""
        began, around, self._inner = self._clock(), self._inner, 0.0
        try:
            yield
        finally:
            seconds = self._clock() - began
            self.add(activity, seconds - self._inner)
            self._inner = around + seconds
