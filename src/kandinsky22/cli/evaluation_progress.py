"""Displays the progress of an evaluation, as bars in a terminal and as occasional lines elsewhere, and its estimate."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kandinsky22.cli.terminal import is_terminal
from kandinsky22.console import LINE_EVERY, echo, text_column

if TYPE_CHECKING:
    from kandinsky22.backends.estimate import Estimate
    from kandinsky22.backends.run_painting import RunProgress


def show_progress(updates: "Iterable[tuple[str, RunProgress]]") -> None:
    """Display the progress of painting by name. Iterating over `updates` is what paints."""
    if is_terminal(sys.stderr):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress

        pace = text_column("{task.fields[pace]}")
        with Progress(text_column("{task.description}"), BarColumn(), MofNCompleteColumn(), pace) as bars:
            tasks: dict[str, Any] = {}
            for name, now in updates:
                if name not in tasks:
                    tasks[name] = bars.add_task(name, total=now.total, pace="")
                bars.update(tasks[name], completed=now.done + now.failed, pace=_pace(now))
        return
    last = 0.0
    for name, now in updates:
        if now.done + now.failed == now.total or time.monotonic() - last >= LINE_EVERY:
            last = time.monotonic()
            echo(f"{name}: {now.done} of {now.total}  {_pace(now)}")


@contextmanager
def progress_reporter() -> Iterator[Callable[[str, int, int], None]]:
    """A callback (name, done, total) that displays progress of anything but painting, on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = text_column("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not is_terminal(sys.stderr)) as bars:
        tasks: dict[str, Any] = {}
        last = time.monotonic()

        def report(name: str, done: int, total: int) -> None:
            nonlocal last
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done)
            if bars.disable and time.monotonic() - last >= LINE_EVERY:
                last = time.monotonic()
                echo(f"{name}: {done} of {total}", error=True)

        yield report


def describe_estimate(estimate: "Estimate") -> str:
    """An estimate of pictures, network calls, disk space and time, in one line."""
    text = f"{estimate.pictures} pictures to paint, {estimate.calls} calls of the decoder's network"
    text += f", about {estimate.bytes / 1e9:.2g} of {estimate.free / 1e9:.0f} GB that are free"
    return text if estimate.seconds is None else f"{text}, about {_clock(estimate.seconds)}"


def _pace(now: "RunProgress") -> str:
    parts = [f"{now.failed} failed"] if now.failed else []
    if now.rate is not None and now.seconds_left is not None:
        parts = [f"{now.rate:.2f} pictures/s", f"{_clock(now.seconds_left)} left", *parts]
    return ", ".join(parts)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return "{}:{:02}:{:02}".format(*divmod(minutes, 60), seconds)
