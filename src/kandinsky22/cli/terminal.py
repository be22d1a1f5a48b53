"""What is said while a request is carried out: in a terminal the picture itself as it is denoised, elsewhere plain lines."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from kandinsky22.request import Request
from kandinsky22.request.events import Event, Notice, Progress, Result, Started
from kandinsky22.request.parts import said

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.segment import Segment

PREVIEW_EVERY = 0.25  # seconds, where decoding is cheap
PREVIEW_CHEAP = 0.15  # seconds
PREVIEW_SHARE = 0.1  # of the time, where it is not
LINE_EVERY = 10.0  # seconds between lines of progress where there is no terminal
WIDEST = 96  # columns of a picture


class Display(Protocol):
    """Whoever tells a person of events, from before the model is loaded (`with`) to the result."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, event: Event) -> None:
        """Tell of what happened."""
        ...


def display(quiet: bool = False) -> Display:
    """The display that fits where the output goes."""
    return Terminal() if is_terminal() and not quiet else Plain(quiet)


def is_terminal() -> bool:
    """Whether the output is a terminal that moves its cursor."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def printable(text: str) -> str:
    """Text of unknown origin without what would steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def describe(request: Request) -> str:
    """A resolved request in one line."""
    first, n = request.seed or 0, request.num_images
    seeds = f"seed {first}" if n == 1 else f"seeds {first} to {first + n - 1}"
    return f'painting "{printable(said(request.condition))}", {request.height}x{request.width}, {seeds}'


class Plain:
    """Short lines; warnings go to stderr. Quiet, there is nothing else."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.stage, self.began, self.said = "", 0.0, 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *of: object) -> None:
        """Nothing is left open."""

    def show(self, event: Event) -> None:
        """Print a line for what is worth one."""
        match event:
            case Notice(text):
                print(printable(text), file=sys.stderr, flush=True)
            case Started(request):
                self._say(describe(request))
            case Progress(stage, i, n):
                self._progress(stage, i, n, time.monotonic())
            case Result(_, _, seconds):
                self._say(f"painted in {seconds:.1f} s")

    def _progress(self, stage: str, i: int, n: int, now: float) -> None:
        if stage != self.stage:
            self.stage, self.began, self.said = stage, now, now
        if i == n:
            self._say(f"{stage}: {n} steps")
        elif now - self.said >= LINE_EVERY:
            self.said = now
            self._say(f"{stage}: step {i} of {n}, about {(now - self.began) / max(i - 1, 1) * (n - i):.0f} s left")

    def _say(self, line: str) -> None:
        if not self.quiet:
            print(line, flush=True)


class Pace:
    """When to look at an unfinished picture: a few times a second where that is cheap, else seldom enough to be."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.next = clock, 0.0

    def look(self, preview: "Callable[[], Image] | None") -> "Image | None":
        """The picture, if there is one and it is time."""
        began = self.clock()
        if preview is None or began < self.next:
            return None
        image = preview()
        cost = self.clock() - began
        self.next = began + cost + (PREVIEW_EVERY if cost <= PREVIEW_CHEAP else cost / PREVIEW_SHARE)
        return image


class Blocks:
    """Pictures side by side as half-blocks, two pixels a character, as large as the terminal and their pixels allow."""

    def __init__(self, images: "Sequence[Image]") -> None:
        self.images = images
        self._size = (0, 0)
        self._segments: list[Segment] = []

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        size = min(options.max_width, WIDEST), max(2, 2 * (console.height - 8))
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
                    upper = Color.from_rgb(*image.getpixel((x, y)))  # type: ignore[misc]  # RGB, so three of them
                    lower = Color.from_rgb(*image.getpixel((x, y + 1))) if y + 1 < size[1] else None  # type: ignore[misc]
                    yield Segment("▀", Style(color=upper, bgcolor=lower))
            yield Segment.line()


class Terminal:
    """Bars with the time left, and above them the first picture as it is denoised; at the end all of them stay."""

    def __init__(self, console: "Console | None" = None) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self.console = console or Console(highlight=False)
        capable = self.console.color_system in ("256", "truecolor") and not self.console.no_color
        self.in_colour = capable and self.console.encoding.startswith("utf")
        columns = TextColumn("{task.description:8}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self.bars = Bars(SpinnerColumn(), *columns, console=self.console)
        self.tasks = {"loading": self.bars.add_task("loading", total=None)}
        self.blocks: Blocks | None = None
        self.pace = Pace()
        self.live = Live(console=self.console, get_renderable=self._view, refresh_per_second=4)

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *of: object) -> None:
        self._bars({})
        self.live.stop()

    def show(self, event: Event) -> None:
        """Bring the display up to date."""
        from rich.text import Text

        match event:
            case Notice(text):
                self.console.print(Text(printable(text), "yellow"))
            case Started(request):
                self.console.print(Text(describe(request), "bold"))
                self._bars({"prior": request.prior.steps, "decoder": request.decoder.steps})
            case Progress(stage, i, n, preview):
                if stage not in self.tasks:
                    self.tasks[stage] = self.bars.add_task(stage)
                self.bars.update(self.tasks[stage], completed=i, total=n)
                if self.in_colour and (image := self.pace.look(preview)) is not None:
                    self.blocks = Blocks([image])
            case Result(pictures, _, seconds):
                self.blocks = Blocks([picture.image for picture in pictures]) if self.in_colour else None
                self.console.print(f"painted in {seconds:.1f} s")

    def _bars(self, stages: dict[str, int | None]) -> None:
        for task in self.tasks.values():
            self.bars.remove_task(task)
        self.tasks = {stage: self.bars.add_task(stage, total=steps) for stage, steps in stages.items()}

    def _view(self) -> "RenderableType":
        from rich.console import Group

        parts: Iterable[RenderableType | None] = (self.blocks, self.bars if self.tasks else None)
        return Group(*(part for part in parts if part is not None))
