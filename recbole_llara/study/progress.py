"""Where a study stands: a bar over its arms, with what runs now and about how long the rest will take."""

import sys
from types import TracebackType

from tqdm import tqdm


def spoken(seconds: float) -> str:
    """A length of time as people say it: ``40 s``, ``12 min``, ``2 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


class Progress:
    """The bar of one study, on standard error; a line an arm stays above it.

    Args:
        count: of arms.
    """

    def __init__(self, count: int) -> None:
        self.bar = tqdm(
            total=count,
            desc="Study",
            bar_format="{desc}: {n_fmt}/{total_fmt} |{bar:30}| {elapsed}{postfix}",
            mininterval=0.1 if sys.stderr.isatty() else 30.0,
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.close()

    def begin(self, arm: str, seconds_left: float | None) -> None:
        """Say what runs now, and how long this and the rest may take."""
        left = "time left unknown yet" if seconds_left is None else f"about {spoken(seconds_left)} left"
        self.bar.set_postfix_str(f"{arm}; {left}", refresh=True)

    def end(self, arm: str, verdict: str) -> None:
        """Say how an arm ended."""
        self.bar.write(f"{arm}: {verdict}", file=sys.stderr)
        self.bar.update()

    def reused(self, count: int) -> None:
        """Say how many arms are taken from earlier calls."""
        if count:
            self.bar.write(
                f"{count} of {self.bar.total} runs are taken from earlier calls (--fresh runs them again)", file=sys.stderr
            )
            self.bar.update(count)
