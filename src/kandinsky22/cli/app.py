"""Which command is meant, and what becomes of errors: bad input is one sentence and status 2, a bug keeps its traceback."""

import io
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module

from kandinsky22.cli import options
from kandinsky22.cli.terminal import printable

DEFAULT_TASK = "text2img"
BAD_INPUT, STOPPED, BROKEN_PIPE = 2, 130, 141  # statuses; the last two as a shell reports the signals
COMMANDS = {
    "show": ("print the request that a picture carries", "kandinsky22.cli.show"),
    "replay": ("paint a picture again, to the same pixels", "kandinsky22.cli.replay"),
    "words": ("print the small model's language, with examples", "kandinsky22.cli.words"),
    "train": ("train a network of the small model", "kandinsky22.training.cli"),
}
"""What each does, and the module whose `main(arguments)` does it."""

USAGE = """kandinsky22 [options] "PROMPT"     without a prompt, one at random
       kandinsky22 COMMAND ..."""
EXAMPLE = 'kandinsky22 "three red circles over a blue triangle" --seed 7 -n 4'
OUT_OF_MEMORY = re.compile(r"out of memory|(can't|cannot|not enough|unable to).{0,20}memory", re.IGNORECASE)


def run(arguments: Sequence[str]) -> int:
    """Carry out a command line; returns the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a prompt may have letters that the terminal has not
    try:
        status = _route(arguments) or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read has gone; Python would complain once more as it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        _complain("stopped; what was written is whole")
        return STOPPED
    except (ValueError, OSError, ArithmeticError, MemoryError, RuntimeError) as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        _complain(sentence)
        return BAD_INPUT


def _route(arguments: Sequence[str]) -> int | None:
    """Hand over to a command, or to a task: what is no command is text to paint."""
    first = arguments[0] if arguments else ""
    if first in COMMANDS:
        status: int | None = import_module(COMMANDS[first][1]).main(arguments[1:])
        return status
    from kandinsky22.cli import paint

    tasks = options.all_tasks()
    epilog = f"example:\n  {EXAMPLE}"
    if first in tasks:
        name = f"kandinsky22 {first}"
        paint.main(tasks[first], arguments[1:], name=name, usage=f'{name} [options] "PROMPT"', epilog=epilog)
        return None
    known = {name: summary for name, (summary, _) in COMMANDS.items()}
    epilog = "\n".join(["commands:", *(f"  {name:8} {summary}" for name, summary in known.items()), "", epilog])
    names = [*COMMANDS, *tasks]
    paint.main(tasks[DEFAULT_TASK], arguments, name="kandinsky22", commands=names, usage=USAGE, epilog=epilog)
    return None


def _sentence(error: Exception) -> str | None:
    """What a person should know of an error; None for a bug."""
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error))):
        return "there is not enough memory; ask for fewer or smaller pictures with --num-images or --size"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
    return str(error) if isinstance(error, ValueError | FloatingPointError) else None


def _complain(sentence: str) -> None:
    print(f"kandinsky22: {printable(' '.join(sentence.split()))}", file=sys.stderr)
