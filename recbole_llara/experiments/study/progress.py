"""Where a study stands: a line before and after every run, with a bar, the time so far and about how long the rest will take.

Lines, not one that is redrawn: between them every run writes its own log and its own live bar.
"""

import sys
from time import perf_counter

WIDTH = 20  # of the bar


def spoken(seconds: float) -> str:
    """A length of time as people say it: ``40 s``, ``12 min``, ``2 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


class Progress:
    """The progress of one study, on standard error.

    Args:
        count: of runs.
        name: before the bar.
    """

    def __init__(self, count: int, name: str = "Study") -> None:
        self.count, self.name, self.done, self.started = count, name, 0, perf_counter()

    def begin(self, arm: str, seconds_left: float | None) -> None:
        """Say what runs now, and how long this and the rest may take."""
        left = "time left not known yet" if seconds_left is None else f"about {spoken(seconds_left)} left"
        self._write(f"{arm} ... {left}")

    def end(self, arm: str, verdict: str) -> None:
        """Say how a run ended."""
        self.done += 1
        self._write(f"{arm}: {verdict}")

    def reused(self, count: int) -> None:
        """Say how many runs are taken from earlier calls."""
        self.done += count
        if count:
            self._write(f"{count} of {self.count} runs are taken from earlier calls (--fresh runs them again)")

    def _write(self, text: str) -> None:
        bar = "#" * (WIDTH * self.done // self.count)
        so_far = spoken(perf_counter() - self.started)
        sys.stderr.write(f"{self.name} [{bar:<{WIDTH}}] {self.done}/{self.count}, {so_far}: {text}\n")
