"""Stop on request: the first signal is obeyed at the next safe point, the second one ends the process.

An exception raised by a signal can come anywhere, also inside a library that swallows it
and goes on with half of its tables filled (scipy's Sobol sequences do). So where numbers
are made a signal only sets a flag: training looks at it between steps and saves a
checkpoint, the service between jobs and before it writes down what was computed. Elsewhere
(text is read, a report is written) it interrupts at once. The second signal ends the
process as a kill would, which a study survives.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

INTERRUPTED = 130  # exit code of a command that was asked to stop


@dataclass
class _Requests:
    """What this process was asked for.

    Attributes:
        asked: Whether a stop is wanted.
        looking: Whether the work of this moment looks at it.
        notice: What to write to stderr when a stop is asked for.
        signals: What is taken as a request.
    """

    asked: bool = False
    looking: bool = False
    notice: bytes = b""
    signals: tuple[signal.Signals, ...] = ()


_requests = _Requests()


def asked() -> bool:
    """Whether the work should save what it has and stop."""
    return _requests.asked


def check() -> None:
    """Stop here if that was asked for.

    Raises:
        KeyboardInterrupt: Then.
    """
    if _requests.asked:
        raise KeyboardInterrupt


@contextmanager
def on_signals(*signals: signal.Signals, notice: str = "") -> Iterator[None]:
    """Take these signals as requests to stop; outside the main thread, which alone gets them, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _request) for number in signals}
    _requests.notice, _requests.signals = notice.encode(), signals
    try:
        yield
    finally:
        _requests.asked, _requests.signals = False, ()
        for number, handler in before.items():
            signal.signal(number, handler)


def take_back_signals() -> None:
    """Install the handlers of `on_signals` again, after a library has put its own in their place."""
    if threading.current_thread() is threading.main_thread():
        for number in _requests.signals:
            signal.signal(number, _request)


@contextmanager
def safe_points() -> Iterator[None]:
    """Promise that the work inside looks at `asked` and ends by itself."""
    before, _requests.looking = _requests.looking, True
    try:
        yield
    finally:
        _requests.looking = before


def _request(number: int, frame: object) -> None:
    if _requests.asked:
        os._exit(INTERRUPTED)
    _requests.asked = True
    if not _requests.looking:
        raise KeyboardInterrupt
    # Not through logging or a buffer: the signal may have come in the middle of either.
    os.write(2, _requests.notice)
