"""How large the inputs and results of a request may be. Imports nothing.

One budget, checked on headers and numbers before a pixel is decoded or a tensor is made. docs/security.md states the
memory that follows from it. These are limits of what is possible, not of what fits this machine, which
`engine/memory.py` estimates.
"""

MAX_PIXELS = 2**26  # of a picture: 8192 x 8192, above the 61 million of full-frame cameras
MAX_ASPECT = 64  # of the longer side over the shorter one, which CLIP resizes to 224 pixels whatever the other
MAX_SIDE = 2**16  # pixels: the longer side of the largest picture of the largest aspect
MAX_FILE_BYTES = 2**30  # of a picture's file: twice the largest picture, uncompressed in four channels of 16 bits
MAX_IMAGES = 256  # of a request, which are painted together: as many as 512 x 512 fit into `MAX_PIXELS`
MAX_PARTS = 64  # of a mix, each of which runs the prior
MAX_LORAS = 32  # of a request
MAX_LORA_BYTES = 2**32  # of its file: rank 512 for every layer of the published decoder has less
MAX_PROMPT = 100_000  # characters: networks read 77 tokens, about 300 characters
MAX_FEATHER = 256  # pixels: each takes a pass over the repainted area
MAX_FRAMES = 2048  # of a strip or film: 85 seconds at 24 frames a second
MAX_FRAME_PIXELS = 2**28  # of all frames of a film, which stay in memory: 1024 of 512 x 512


class LimitError(ValueError):
    """Something is larger than the limits: one sentence with its name and the limit."""


def check_size(name: str, height: int, width: int) -> None:
    """Raises `LimitError` for a picture without pixels, with more than `MAX_PIXELS`, or longer than `MAX_ASPECT`."""
    shorter, longer = sorted((height, width))
    if shorter < 1:
        raise LimitError(f"{name} has no pixels; check the file or the array")
    if longer > MAX_ASPECT * shorter:
        raise LimitError(f"{name} is {width}x{height}, and one side is at most {MAX_ASPECT} times the other; crop it")
    if height * width > MAX_PIXELS:
        side = round(MAX_PIXELS**0.5)
        raise LimitError(f"{name} is {width}x{height}, and it has at most {side}x{side} pixels; make it smaller")


def check_count(name: str, count: int, most: int) -> None:
    """Raises `LimitError` for more than `most` of something."""
    if count > most:
        raise LimitError(f"{name} must be at most {most}, got {count!r:.20}")
