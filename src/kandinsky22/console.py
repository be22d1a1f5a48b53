"""Text on a terminal. What comes from outside (files, names, models) is printed without its control characters.

All output to the terminal passes through `echo`, `text_column` or a rich `Text` of `printable`.
"""

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Task, TextColumn
    from rich.text import Text

FIRST_LINE, LINE_EVERY = 3.0, 10.0  # seconds until the first line of progress outside a terminal, and between lines


def printable(text: str) -> str:
    """Text with its control characters escaped (C0, C1, bidirectional overrides), so that it commands no terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def echo(text: object, *, error: bool = False, start: str = "", end: str = "\n") -> None:
    """Print a line on stdout, or on stderr for an `error` or progress. `start` and `end` are printed as they are."""
    print(f"{start}{printable(str(text))}", end=end, file=sys.stderr if error else sys.stdout, flush=True)


class ProgressLines:
    """Prints lines on stderr about how much is done: the first after `FIRST_LINE` seconds, then one in `LINE_EVERY`."""

    def __init__(self) -> None:
        self._what, self._start, self._next = "", 0.0, 0.0

    def show(self, what: str, done: float, total: float) -> None:
        """So much of `total` is done; the time is counted from the first call for each `what`."""
        now = time.monotonic()
        if what != self._what:
            self._what, self._start, self._next = what, now, now + FIRST_LINE
        if now >= self._next and 0 < done < total:
            self._next = now + LINE_EVERY
            left = (now - self._start) / done * (total - done)
            echo(f"{what}: {done:.0f} of {total:.0f}, about {left:.0f} s left", error=True)


def text_column(template: str) -> "TextColumn":
    """A column of rich's progress bars, such as "{task.description}", without markup and control characters."""
    from rich.progress import TextColumn
    from rich.text import Text

    class PlainColumn(TextColumn):
        def render(self, task: "Task") -> "Text":
            return Text(printable(self.text_format.format(task=task)), style=self.style, justify=self.justify)

    return PlainColumn(template)
