"""How a run stops before its end: in good order where it is asked to, else where it diverged."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class DivergedError(RuntimeError):
    """A loss or its gradient is not finite; the message says where, and what is still good."""


class StopRequest:
    """Whether somebody has asked the run to stop."""

    def __init__(self) -> None:
        self.requested = False


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Turns Ctrl-C and a termination signal into a request; a second Ctrl-C stops at once.

    The step that is under way is finished first. Only the main thread can receive signals, so
    elsewhere nothing is ever requested.
    """
    stop = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.requested = True

    try:
        before = {number: signal.signal(number, handle) for number in _SIGNALS}
    except ValueError:  # not the main thread
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
