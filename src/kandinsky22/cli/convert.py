"""`kandinsky22 convert`: a model in one file or in folders, each from the other, and in another dtype. Help without torch."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kandinsky22.cli.options import Parser
from kandinsky22.cli.terminal import LINE_EVERY, printable

QUIET_FOR = 2.0  # seconds
EVERY = 0.25  # seconds, in a terminal
EXAMPLES = """examples:
  kandinsky22 convert kandinsky-2.2 kandinsky.safetensors --dtype float16
  kandinsky22 convert kandinsky.safetensors my-folder
  kandinsky22 convert decoder-folder prior-folder kandinsky.safetensors"""


def main(arguments: Sequence[str]) -> None:
    """Convert a model, telling how far it is."""
    parser = Parser(
        "kandinsky22 convert",
        "Write a model as one file, if TARGET ends in .safetensors, or else as folders in the published layout.",
        usage="kandinsky22 convert [options] SOURCE ... TARGET",
        epilog=EXAMPLES,
    )
    parser.option("dtype", metavar="NAME", help="float32, bfloat16 or float16 for all weights (default: as they are)")
    parser.option("quiet", short="-q", action="store_true", help="say nothing but where the model is")
    options, words, _ = parser.parse(arguments)
    if len(words) < 2:
        raise ValueError(
            f"`convert` takes a model and where to write it, got {len(words)} names; see {parser.prog} --help"
        )

    from kandinsky22.checkpoints import single_file

    quiet = options.get("quiet", False)
    *sources, target = words
    told = (lambda done, total: None) if quiet else progress()
    model = single_file.convert(sources, Path(target).expanduser(), options.get("dtype"), told)
    if model.left_out and not quiet:
        print(f"left out, as no part of the model: {printable(', '.join(model.left_out))}", file=sys.stderr)
    print(target)


def progress(clock: Callable[[], float] = time.monotonic) -> Callable[[int, int], None]:
    """Tells stderr of bytes written, from the third second on: one line that changes in a terminal, else a line at times."""
    began = said = clock()
    moves = sys.stderr.isatty()

    def tell(done: int, total: int) -> None:
        nonlocal said
        now = clock()
        late, over = now - began > QUIET_FOR, done == total
        if late and (over or now - said >= (EVERY if moves else LINE_EVERY)):
            said = now
            left = (now - began) / max(done, 1) * (total - done)
            line = f"converted {done / 1e9:.1f} of {total / 1e9:.1f} GB" + (f", about {left:.0f} s left" * (not over))
            print(
                f"\r{line:60}" if moves else line, end="" if moves and not over else "\n", file=sys.stderr, flush=True
            )

    return tell
