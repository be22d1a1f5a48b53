"""Painting in a process of its own, without painting: pictures of one prompt and seed, with other guidance.

python -m tests.hostile.paint_program FOLDER PAINTER: begins when a line is written to its input
"""

import sys
from pathlib import Path

from PIL import Image

from kandinsky22.cli import output
from kandinsky22.imaging.images import Painting
from kandinsky22.request.tasks import text2img

PICTURES = 24  # of each painter


def paint(folder: Path, painter: int, k: int) -> Path:
    """Save a picture whose guidance and colour are of its own."""
    request = text2img("a red circle", seed=7, guidance_scale=1 + painter + k / 100, height=64, width=64)
    picture = Painting(Image.new("RGB", (64, 64), (painter, k, 0)), request, {})
    return output.save_picture(picture, output.Destination(folder))


if __name__ == "__main__":
    sys.stdin.readline()
    for k in range(PICTURES):
        print(paint(Path(sys.argv[1]), int(sys.argv[2]), k))
