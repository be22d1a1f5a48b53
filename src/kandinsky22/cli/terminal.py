"""Displays the events of a request: in a terminal progress bars and previews of the picture, elsewhere plain lines.

All of it goes to stderr, so that stdout has the paths of the pictures alone.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from kandinsky22.console import FIRST_LINE, LINE_EVERY, ProgressLines, echo, printable, text_column
from kandinsky22.request import Request
from kandinsky22.request.events import Event, Notice, Preview, Progress, Result, Started
from kandinsky22.request.parts import describe
from kandinsky22.request.picture_file import read_picture

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.progress import TaskID
    from rich.segment import Segment

MAX_COLUMNS = 96  # of the terminal, for pictures


class Display(Protocol):
    """Displays events; a context manager that is entered before the first event. preview: the previews it shows."""

    preview: Preview | None

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, event: Event) -> None:
        """Display an event."""
        ...


def display(quiet: bool = False) -> Display:
    """The display for stderr: `Terminal` if it is one, or else `Plain`."""
    return Terminal() if is_terminal(sys.stderr) and not quiet else Plain(quiet)


def is_terminal(stream: TextIO | None = None) -> bool:
    """Whether a stream (None: stdout) is a terminal that can move its cursor."""
    return (stream or sys.stdout).isatty() and os.environ.get("TERM") != "dumb"


def summary(request: Request) -> str:
    """A resolved request in one line."""
    first, n = request.seed or 0, request.num_images
    seeds = f"seed {first}" if n == 1 else f"seeds {first} to {first + n - 1}"
    return f'painting "{describe(request.condition)}", {request.width}x{request.height}, {seeds}'


class Plain:
    """Prints short lines. If quiet, prints the notices only."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.preview: Preview | None = None
        self.stage, self.start, self.last = "", 0.0, 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *of: object) -> None:
        """Nothing to clean up: every line has been printed."""

    def show(self, event: Event) -> None:
        """Print a line for an event, if it needs one."""
        match event:
            case Notice(text):
                echo(text, error=True)
            case Started(request):
                self._print(summary(request))
            case Progress(stage, i, n):
                self._progress(stage, i, n, time.monotonic())
            case Result(_, _, seconds):
                self._print(f"painted in {seconds:.1f} s")

    def _progress(self, stage: str, i: int, n: int, now: float) -> None:
        if stage != self.stage:
            self.stage, self.start, self.last = stage, now, now + FIRST_LINE - LINE_EVERY
        if i == n:
            self._print(f"{stage}: {n} steps")
        elif now - self.last >= LINE_EVERY:
            self.last = now
            self._print(f"{stage}: step {i} of {n}, about {(now - self.start) / max(i - 1, 1) * (n - i):.0f} s left")

    def _print(self, line: str) -> None:
        if not self.quiet:
            echo(line, error=True)


class Steps:
    """Displays on stderr how much of something is done: bars in a terminal, elsewhere lines; a context manager."""

    def __init__(self, *, quiet: bool = False) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self.quiet, self.in_terminal = quiet, is_terminal(sys.stderr) and not quiet
        columns = text_column("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
        self._bars = Bars(*columns, console=Console(stderr=True, highlight=False), disable=not self.in_terminal)
        self._tasks: dict[str, TaskID] = {}
        self._lines = ProgressLines()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *of: object) -> None:
        self._bars.stop()

    def print(self, line: str) -> None:
        """Print a line, unless quiet."""
        from rich.text import Text

        if self.in_terminal:
            self._bars.console.print(Text(printable(line)), soft_wrap=True)
        elif not self.quiet:
            echo(line, error=True)

    def show(self, what: str, done: float, total: int) -> None:
        """Display that so much of `total` is done."""
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what)
        self._bars.update(self._tasks[what], completed=done, total=total)
        if not self.quiet and not self.in_terminal:
            self._lines.show(what, done, total)


class HalfBlocks:
    """Pictures side by side as half-block characters, two pixels each; scaled down to fit, never enlarged."""

    def __init__(self, images: "Sequence[Image]") -> None:
        self.images = images
        self._size = (0, 0)
        self._segments: list[Segment] = []

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        size = min(options.max_width, MAX_COLUMNS), max(2, 2 * (console.height - 8))
        if size != self._size:
            self._size, self._segments = size, list(self._draw(*size))
        yield from self._segments

    def _draw(self, columns: int, rows: int) -> "Iterator[Segment]":
        from rich.color import Color
        from rich.segment import Segment
        from rich.style import Style

        across = min(len(self.images), max(1, columns // 24))
        width, height = self.images[0].size
        scale = min(1.0, ((columns + 2) // across - 2) / width, rows / height)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = [image.convert("RGB").resize(size) for image in self.images[:across]]
        for y in range(0, size[1], 2):
            for k, image in enumerate(small):
                yield Segment("  " if k else "")
                for x in range(size[0]):
                    upper = Color.from_rgb(*image.getpixel((x, y)))  # type: ignore[misc]  # an RGB pixel is a tuple of three
                    lower = Color.from_rgb(*image.getpixel((x, y + 1))) if y + 1 < size[1] else None  # type: ignore[misc]
                    yield Segment("▀", Style(color=upper, bgcolor=lower))
            yield Segment.line()


class Terminal:
    """Shows progress bars and above them a preview of the first picture; at the end all pictures remain."""

    def __init__(self, console: "Console | None" = None) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self.console = console or Console(stderr=True, highlight=False)
        has_colours = self.console.color_system in ("256", "truecolor") and not self.console.no_color
        self.in_colour = has_colours and self.console.encoding.startswith("utf")
        columns = TextColumn("{task.description:8}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self.bars = Bars(SpinnerColumn(), *columns, console=self.console)
        self.tasks = {"loading": self.bars.add_task("loading", total=None)}
        self.blocks: HalfBlocks | None = None
        self.preview = Preview() if self.in_colour else None
        self.size = (1, 1)
        self.live = Live(console=self.console, get_renderable=self._view, refresh_per_second=4)

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *of: object) -> None:
        self._set_bars({})
        self.live.stop()

    def show(self, event: Event) -> None:
        """Update the display for an event."""
        from rich.text import Text

        match event:
            case Notice(text):
                self.console.print(Text(printable(text), "yellow"))
            case Started(request):
                self.size = request.width or 1, request.height or 1
                self.console.print(Text(printable(summary(request)), "bold"))
                self._set_bars({"prior": request.prior.steps, "decoder": request.decoder.steps})
            case Progress(stage, i, n, preview):
                if stage not in self.tasks:
                    self.tasks[stage] = self.bars.add_task(stage)
                self.bars.update(self.tasks[stage], completed=i, total=n)
                if preview is not None:
                    self.blocks = HalfBlocks([read_picture(preview, name="a preview").resize(self.size)])
            case Result(pictures, _, seconds):
                self.blocks = HalfBlocks([picture.image for picture in pictures]) if self.in_colour else None
                self.console.print(f"painted in {seconds:.1f} s")

    def _set_bars(self, stages: dict[str, int | None]) -> None:
        for task in self.tasks.values():
            self.bars.remove_task(task)
        self.tasks = {stage: self.bars.add_task(stage, total=steps) for stage, steps in stages.items()}

    def _view(self) -> "RenderableType":
        from rich.console import Group

        parts: Iterable[RenderableType | None] = (self.blocks, self.bars if self.tasks else None)
        return Group(*(part for part in parts if part is not None))
