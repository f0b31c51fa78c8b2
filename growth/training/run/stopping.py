"""How a run stops before its end: in good order where it is asked to, else where it diverged."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

# Ctrl-C, and the two signals by which a machine says that a process must end.
_TERMINATION = (signal.SIGTERM, signal.SIGHUP)
_SIGNALS = (signal.SIGINT, *_TERMINATION)

# The exit code of a run that was asked to stop, and has not finished.
STOPPED = 4


class DivergedError(RuntimeError):
    """A loss, its gradient or the parameters are of no use any more; the message says what is good.

    Attributes:
      bad_step: the parameters after this many optimizer steps are the first that are of no use.
    """

    def __init__(self, message: str, bad_step: int) -> None:
        super().__init__(message)
        self.bad_step = bad_step


class StoppedError(RuntimeError):
    """A run was asked to stop: it has saved, and is not finished."""


class StopRequest:
    """Whether somebody has asked the run to stop.

    Attributes:
      requested: whether it is to stop after the step that is under way.
      leave: what to do before the process ends at once.
      nothing_unsaved: whether all that was trained is saved, or being saved. A process that is told
        to terminate then calls `leave` and ends at once, whatever it is doing: it may be compiling,
        or carrying a large state through a growth, which no signal can interrupt.
    """

    def __init__(self) -> None:
        self.requested = False
        self.leave: Callable[[], None] = lambda: None
        self._nothing_unsaved = False
        self._must_end = False
        self._lock = threading.Lock()

    @property
    def nothing_unsaved(self) -> bool:
        return self._nothing_unsaved

    @nothing_unsaved.setter
    def nothing_unsaved(self, value: bool) -> None:
        with self._lock:  # if the process is about to end, this waits for the end
            self._nothing_unsaved = value

    def terminate(self) -> None:
        """Takes note that the process must end; ends it where nothing is unsaved."""
        with self._lock:
            self.requested = True
            if self._nothing_unsaved:
                try:
                    self.leave()
                finally:
                    os._exit(STOPPED)


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Turns Ctrl-C and signals of termination into a request; a second Ctrl-C stops at once.

    The step that is under way is finished first. Only the main thread can receive signals, so
    elsewhere nothing is ever requested.
    """
    stop = StopRequest()
    interrupts = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if stop.requested and number == signal.SIGINT and interrupts <= 2:
            interrupts = 2  # those that follow are heard no more: what is being saved is saved
            raise KeyboardInterrupt
        stop.requested = True

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        with _watched(stop):
            yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _watched(stop: StopRequest) -> Iterator[None]:
    """Has another thread hear of signals while the main one cannot.

    Python calls a handler between two instructions of the main thread, and that may be minutes
    after the signal where one of them compiles a program. It writes the signal's number to a file
    at once.
    """
    ours, pythons = socket.socketpair()
    pythons.setblocking(False)

    def watch() -> None:
        while number := ours.recv(1):
            if number[0] in _TERMINATION:
                stop.terminate()

    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        pythons.close()  # which ends the thread
        thread.join()
        ours.close()
