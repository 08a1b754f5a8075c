"""Progress of a command that makes many runs: what is running, how far it is, how long it will take."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

_PLAIN_EVERY_S = 20.0


def duration(seconds: float) -> str:
    """3.5 -> "4 s", 130 -> "2 min 10 s", 8000 -> "2 h 13 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class RunProgress:
    """A bar on a terminal, a line now and then elsewhere, nothing if `quiet`; all on standard error.

    Work is counted in units (about: rows computed); time left follows from units done so far.
    """

    def __init__(self, total_units: float, *, quiet: bool = False) -> None:
        self.total = max(total_units, 1.0)
        self.done = 0.0
        self._skipped = 0.0
        self._started = self._last_line = time.monotonic()
        self._label = ""
        self._console = Console(stderr=True, quiet=quiet)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            disable=quiet or not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("", total=self.total, left="")

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def start_run(self, label: str) -> None:
        """Name what is running now."""
        self._label = label
        self._bar.update(self._task, description=label)

    def advance(self, units: float) -> None:
        """Count work done."""
        self.done += units
        self._bar.update(self._task, completed=self.done, left=self._left())
        now = time.monotonic()
        if self._bar.disable and now - self._last_line > _PLAIN_EVERY_S:
            self._last_line = now
            self.say(f"{min(self.done / self.total, 1):4.0%}  {self._label}{self._left()}")

    def skip(self, units: float) -> None:
        """Count work that turned out to be needless, which says nothing about speed."""
        self._skipped += units
        self.advance(units)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _left(self) -> str:
        computed = self.done - self._skipped
        if computed <= 0 or self.done >= self.total:
            return ""
        elapsed = time.monotonic() - self._started
        return f", {duration(elapsed / computed * (self.total - self.done))} left"
