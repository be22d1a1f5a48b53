"""How far an evaluation is, told in a terminal by bars and elsewhere by a line now and then; and what it will take."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kandinsky22.cli.terminal import LINE_EVERY, is_terminal

if TYPE_CHECKING:
    from kandinsky22.evaluation.estimate import Estimate
    from kandinsky22.evaluation.generate import RunProgress


def told(standings: "Iterable[tuple[str, RunProgress]]") -> None:
    """Say how far painting is, of each name; what is painted is painted while this asks."""
    if is_terminal():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        said = TextColumn("{task.fields[said]}")
        with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), said) as bars:
            tasks: dict[str, Any] = {}
            for name, now in standings:
                if name not in tasks:
                    tasks[name] = bars.add_task(name, total=now.total, said="")
                bars.update(tasks[name], completed=now.done + now.failed, said=_pace(now))
        return
    last = 0.0
    for name, now in standings:
        if now.done + now.failed == now.total or time.monotonic() - last >= LINE_EVERY:
            last = time.monotonic()
            print(f"{name}: {now.done} of {now.total}  {_pace(now)}", flush=True)


@contextmanager
def saying() -> Iterator[Callable[[str, int, int], None]]:
    """Progress of what is not painting, on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not is_terminal()) as bars:
        tasks: dict[str, Any] = {}
        last = time.monotonic()

        def say(what: str, done: int, of: int) -> None:
            nonlocal last
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=of)
            bars.update(tasks[what], completed=done)
            if bars.disable and time.monotonic() - last >= LINE_EVERY:
                last = time.monotonic()
                print(f"{what}: {done} of {of}", file=sys.stderr, flush=True)

        yield say


def needed(needs: "Estimate") -> str:
    """An estimate, in a sentence."""
    said = f"{needs.pictures} pictures to paint, {needs.calls} calls of the decoder's network"
    said += f", about {needs.bytes / 1e9:.2g} of {needs.free / 1e9:.0f} GB that are free"
    return said if needs.seconds is None else f"{said}, about {_clock(needs.seconds)}"


def _pace(now: "RunProgress") -> str:
    said = [f"{now.failed} failed"] if now.failed else []
    if now.rate is not None and now.seconds_left is not None:
        said = [f"{now.rate:.2f} pictures/s", f"{_clock(now.seconds_left)} left", *said]
    return ", ".join(said)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return "{}:{:02}:{:02}".format(*divmod(minutes, 60), seconds)
