"""Which command is meant, and what becomes of errors: bad input is one sentence and status 2, a bug keeps its traceback."""

import io
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module

from kandinsky22.cli.terminal import printable
from kandinsky22.request.task_schema import Task, all_tasks

DEFAULT_TASK = "text2img"
BAD_INPUT, STOPPED, BROKEN_PIPE = 2, 130, 141  # statuses; the last two as a shell reports the signals
COMMANDS = {
    "show": ("print the request that a picture carries", "kandinsky22.cli.show"),
    "replay": ("paint a picture again, to the same pixels", "kandinsky22.cli.replay"),
    "words": ("print the small model's language, with examples", "kandinsky22.cli.words"),
    "embed": ("save the embedding of texts and pictures", "kandinsky22.cli.blend:embed"),
    "mix": ("blend texts, pictures and saved embeddings", "kandinsky22.cli.blend:blend"),
    "strip": ("paint the way between them, side by side", "kandinsky22.cli.blend:strip"),
    "film": ("paint the way between them, as a film", "kandinsky22.cli.blend:film"),
    "depth": ("estimate a picture's depth, to follow as a hint", "kandinsky22.cli.depth"),
    "convert": ("write a model as one file, as folders, or in another dtype", "kandinsky22.cli.convert"),
    "doctor": ("say what fits this machine and how long it takes", "kandinsky22.cli.doctor"),
    "train": ("train a network of the small model", "kandinsky22.training.cli"),
    "evaluate": ("measure a model: FID and more, or what an oracle reads", "kandinsky22.cli.evaluate"),
}
"""What each does, and the module whose `main(arguments)` (or the function after the colon) does it."""

USAGE = """kandinsky22 [options] "PROMPT"     without a prompt, one at random
       kandinsky22 COMMAND ..."""
PROMPT = '"PROMPT"'
WORDS = {"interpolate": "WORD-OR-FILE ...", "variations": "FILE"}
"""What stands beside a task's options, where it is not a prompt."""
EXAMPLES = {
    task: f"example:\n  kandinsky22 {example}"
    for task, example in {
        "text2img": '"three red circles over a blue triangle" --seed 7 -n 4',
        "img2img": 'img2img "a yellow star" --image circle.png --strength 0.5',
        "interpolate": 'interpolate "a red circle" star.png --weights 0.4,0.6',
        "variations": "variations circle.png -n 4",
        "inpaint": 'inpaint "a green square" --image circle.png --mask-image mask.png',
        "outpaint": 'outpaint "two red circles" --image circle.png --right 32',
        "controlnet": 'controlnet "a purple ring" --hint depth.png',
    }.items()
}
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
        module, _, function = COMMANDS[first][1].partition(":")
        status: int | None = getattr(import_module(module), function or "main")(arguments[1:])
        return status
    from kandinsky22.cli import paint

    tasks = all_tasks()
    if first in tasks:
        name = f"kandinsky22 {first}"
        usage = f"{name} [options] {WORDS.get(first, PROMPT)}"
        paint.main(tasks[first], arguments[1:], name=name, usage=usage, epilog=EXAMPLES.get(first, ""))
        return None
    epilog = EXAMPLES[DEFAULT_TASK]
    known = {name: summary for name, (summary, _) in COMMANDS.items()}
    known = {name: _summary(task) for name, task in tasks.items()} | known
    epilog = "\n".join(["commands:", *(f"  {name:11} {summary}" for name, summary in known.items()), "", epilog])
    names = [*COMMANDS, *tasks]
    paint.main(tasks[DEFAULT_TASK], arguments, name="kandinsky22", commands=names, usage=USAGE, epilog=epilog)
    return None


def _summary(task: Task) -> str:
    """What a task does, as its docstring begins."""
    return (task.__doc__ or "").strip().partition("\n")[0].partition(":")[0].rstrip(".").lower()


def _sentence(error: Exception) -> str | None:
    """What a person should know of an error; None for a bug."""
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error))):
        return "there is not enough memory; ask for fewer or smaller pictures with --num-images or --size"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
    return str(error) if isinstance(error, ValueError | FloatingPointError) else None


def _complain(sentence: str) -> None:
    print(f"kandinsky22: {printable(' '.join(sentence.split()))}", file=sys.stderr)
