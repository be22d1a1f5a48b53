"""`kandinsky22 convert`: converts a model between one file and folders, or to another dtype. --help needs no torch."""

import sys
import time
from collections.abc import Callable, Sequence

from kandinsky22.cli.options import Parser
from kandinsky22.console import LINE_EVERY, echo
from kandinsky22.files import expand

DELAY = 2.0  # seconds before progress is displayed
UPDATE_EVERY = 0.25  # seconds, in a terminal
EXAMPLES = """examples:
  kandinsky22 convert kandinsky-2.2 kandinsky.safetensors --dtype float16
  kandinsky22 convert kandinsky.safetensors my-folder
  kandinsky22 convert decoder-folder prior-folder kandinsky.safetensors"""


def main(arguments: Sequence[str]) -> None:
    """Convert a model and display the progress."""
    parser = Parser(
        "kandinsky22 convert",
        "Write a model as one file if TARGET ends in .safetensors, or else as folders in the published layout.",
        usage="kandinsky22 convert [options] SOURCE ... TARGET",
        epilog=EXAMPLES,
    )
    parser.option(
        "dtype", metavar="NAME", help="convert all weights to float32, bfloat16 or float16 (default: unchanged)"
    )
    parser.option("quiet", short="-q", action="store_true", help="print nothing but the path of the model")
    options, words, _ = parser.parse(arguments)
    if len(words) < 2:
        raise ValueError(
            f"`convert` takes a model and a target to write, got {len(words)} names; see {parser.prog} --help"
        )

    from kandinsky22.checkpoints import single_file

    quiet = options.get("quiet", False)
    *sources, target = words
    report = (lambda done, total: None) if quiet else progress()
    model = single_file.convert(sources, expand(target), options.get("dtype"), report)
    if model.left_out and not quiet:
        echo(f"left out, since they are not part of the model: {', '.join(model.left_out)}", error=True)
    echo(target)


def progress(clock: Callable[[], float] = time.monotonic) -> Callable[[int, int], None]:
    """A callback (bytes done, bytes in total) that prints progress on stderr after `DELAY` seconds.

    In a terminal it updates one line, elsewhere it prints a line every `LINE_EVERY` seconds.
    """
    start = last = clock()
    terminal = sys.stderr.isatty()

    def report(done: int, total: int) -> None:
        nonlocal last
        now, finished = clock(), done == total
        if now - start <= DELAY or not (finished or now - last >= (UPDATE_EVERY if terminal else LINE_EVERY)):
            return
        last = now
        left = (now - start) / max(done, 1) * (total - done)
        line = f"converted {done / 1e9:.1f} of {total / 1e9:.1f} GB"
        line += "" if finished else f", about {left:.0f} s left"
        end = "" if terminal and not finished else "\n"
        echo(f"{line:60}" if terminal else line, start="\r" if terminal else "", end=end, error=True)

    return report
