"""A page made with Gradio: a prompt becomes a picture, with previews while it is painted.

python examples/gradio_app.py

Gradio 6.31 requires a Pillow below 13, and kandinsky22 one from 13 on: pip installs both only with --no-deps.
"""

import io
from collections.abc import Iterator

import gradio
from PIL import Image

from kandinsky22 import Kandinsky
from kandinsky22.request.events import Preview, Progress, Result

kandinsky = Kandinsky.load("box")


def paint(prompt: str, seed: float) -> Iterator[Image.Image]:
    """The previews of a picture, and then the picture."""
    for event in kandinsky.stream(prompt, Preview(every=5), seed=int(seed)):
        match event:
            case Progress(preview=bytes(small)):
                yield Image.open(io.BytesIO(small))
            case Result(pictures):
                yield pictures[0].image


page = gradio.Interface(
    paint,
    [gradio.Textbox("three red circles over a blue triangle", label="Prompt"), gradio.Number(7, label="Seed")],
    gradio.Image(format="png", label="Picture"),
    title="Kandinsky 2.2",
)
if __name__ == "__main__":
    page.queue(default_concurrency_limit=1).launch()
