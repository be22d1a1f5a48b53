"""The progress bar of pipelines, shown on terminals only."""

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any, Self

from rich.console import Console
from rich.progress import Progress

from kandinsky22.console import text_column


class ProgressBar:
    """A bar used as diffusers' is: a context manager with `update`, or an iterator over `iterable`.

    options: disable, desc and leave, with tqdm's meaning; others have no effect.
    """

    def __init__(self, total: int | None, options: Mapping[str, Any], iterable: Iterable[Any] | None = None) -> None:
        console = Console(stderr=True)
        columns = text_column("{task.description}"), *Progress.get_default_columns()[1:]
        disabled = bool(options.get("disable")) or not console.is_terminal
        self._iterable = iterable
        self._bar = Progress(*columns, console=console, disable=disabled, transient=options.get("leave") is False)
        total = len(iterable) if total is None and isinstance(iterable, Sized) else total
        self._task = self._bar.add_task(str(options.get("desc") or ""), total=total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in () if self._iterable is None else self._iterable:
                yield item
                self.update()

    def update(self, n: int = 1) -> None:
        """n more steps are done."""
        self._bar.advance(self._task, n)

    def show(self, completed: int, total: int) -> None:
        """How many of all steps are done."""
        self._bar.update(self._task, completed=completed, total=total)
