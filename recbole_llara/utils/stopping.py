"""Ctrl-C and SIGTERM during training: the current step finishes and a state is saved before the run ends.

Outside of training a signal acts at once: everything worth keeping is on disk. So does a second signal.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from recbole_llara.utils.errors import Stopped, may_handle

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether somebody has asked this process to stop.

    Attributes:
        asked: the signal's number; None where nobody has.
    """

    def __init__(self) -> None:
        self.asked: int | None = None

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, the first signal is noted only, and the one after it raises ``Stopped``.

        A signal that does nothing (as Ctrl-C in a shell's background jobs) goes on doing nothing.
        """
        before = {number: signal.signal(number, self._note) for number in SIGNALS if may_handle(number)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, signal_number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            raise Stopped(signal_number)
        self.asked = signal_number
