"""Painting in a Jupyter notebook.

`paint` shows a progress bar with previews in place. After `%load_ext kandinsky22.notebook` a list of paintings is shown
as a sheet. A single painting shows itself.
"""

import base64
import html
from importlib import import_module
from typing import Any

from kandinsky22.engine.kandinsky import Kandinsky, as_request
from kandinsky22.imaging.images import Painting, sheet
from kandinsky22.request import Request
from kandinsky22.request.events import Notice, Preview, Progress, Result


def paint(model: Kandinsky, what: str | Request, *, preview: Preview | None = None, **options: Any) -> list[Painting]:
    """Paint a request, or a prompt with the options of `tasks.text2img`, and show progress in the cell's output.

    preview: how often and how large; None: the default `Preview`. The bar ends with the run, also with one that fails.
    """
    ipython = import_module("IPython.display")  # is there in a notebook, and no dependency
    HTML, display = ipython.HTML, ipython.display  # noqa: N806
    shown = display(HTML(_bar("starting", 0, 1)), display_id=True)
    notices, state = "", "stopped"
    image: bytes | None = None
    i, n = 0, 1
    try:
        for event in model.stream(as_request(what, **options), preview or Preview()):
            match event:
                case Notice(text):
                    notices += f"<div>{html.escape(text)}</div>"
                case Progress(stage, i, n, small):
                    image = small or image
                    shown.update(HTML(notices + _bar(stage, i, n, image)))
                case Result(pictures, _, seconds):
                    state, i, image = f"done in {seconds:.1f} s", n, None
                    return pictures
    finally:
        shown.update(HTML(notices + _bar(state, i, n, image)))
    raise AssertionError("a stream ends with its result")


def load_ipython_extension(shell: Any) -> None:
    """Called by `%load_ext kandinsky22.notebook`: lists of paintings of one size are shown as a sheet."""
    shell.display_formatter.formatters["image/png"].for_type(list, sheet_png)


def sheet_png(values: list[Any]) -> bytes | None:
    """The PNG file of a sheet of paintings with their seeds beneath; None for any other list."""
    if not values or not all(isinstance(value, Painting) for value in values):
        return None
    if len({value.image.size for value in values}) > 1:
        return None
    page = sheet([value.image for value in values], [f"seed {value.request.seed}" for value in values])
    png: bytes | None = page._repr_png_()
    return png


def _bar(text: str, i: int, n: int, image: bytes | None = None) -> str:
    """A progress bar at i of n as HTML, with a small PNG beneath if there is one."""
    bar = f'<div><progress value="{i}" max="{n}"></progress> {html.escape(text)} {i}/{n}</div>'
    if not image:
        return bar
    return f'{bar}<img style="width: 128px" src="data:image/png;base64,{base64.b64encode(image).decode()}">'
