"""The entry point: runs the command of a command line, and turns errors into one sentence and an exit status.

Bad input is status 2; a bug keeps its traceback. A command whose reader closes the pipe is carried out to its end, and
then has status 141.
"""

import gc
import re
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from kandinsky22.cli.streams import LastingStream, open_lasting
from kandinsky22.console import echo
from kandinsky22.request.task_schema import Task, all_tasks
from kandinsky22.threads import let_threads_sleep

DEFAULT_TASK = "text2img"
BAD_INPUT, INTERRUPTED, BROKEN_PIPE = 2, 130, 141  # exit statuses; the last two as a shell reports the signals
MAX_MESSAGE = 2000  # characters of an error, which may quote what a file or an option holds
GC_THRESHOLD = 100_000  # new objects between two runs of the garbage collector
COMMANDS = {
    "show": ("print the request stored in a picture", "kandinsky22.cli.show"),
    "replay": ("paint a picture again, with the same pixels", "kandinsky22.cli.replay"),
    "batch": ("paint a file of requests, which can be resumed", "kandinsky22.cli.batch"),
    "words": ("print the words that the small model knows, with examples", "kandinsky22.cli.words"),
    "embed": ("save the image embeddings of texts and pictures", "kandinsky22.cli.embed:embed"),
    "mix": ("blend texts, pictures and saved embeddings into one embedding", "kandinsky22.cli.embed:mix"),
    "strip": ("paint an interpolation between them, side by side", "kandinsky22.cli.film:strip"),
    "film": ("paint an interpolation between them, as a film", "kandinsky22.cli.film:film"),
    "depth": ("estimate the depth of a picture, as a hint for controlnet", "kandinsky22.cli.depth"),
    "convert": ("write a model as one file, as folders, or in another dtype", "kandinsky22.cli.convert"),
    "lora": ("print what is in a LoRA, combine LoRAs, or extract one from two models", "kandinsky22.cli.lora"),
    "doctor": ("print what fits this machine and how long a picture takes", "kandinsky22.cli.doctor"),
    "serve": ("serve a model over HTTP, for other programs and the browser", "kandinsky22.cli.serve"),
    "mcp": ("serve the tasks as tools for agents (Model Context Protocol)", "kandinsky22.cli.mcp"),
    "studio": ("open the studio in the browser, with a server if none runs", "kandinsky22.cli.studio"),
    "train": ("train a network of the small model", "kandinsky22.training.cli"),
    "evaluate": (
        "measure a model: FID and more, or what an oracle reads from its pictures",
        "kandinsky22.cli.evaluate",
    ),
}
"""The commands beside the tasks: a summary, and the module whose `main` or the function after the colon runs it."""

USAGE = """kandinsky22 [options] "PROMPT"     without a prompt: a random one
       kandinsky22 COMMAND ..."""
POSITIONALS = {"interpolate": '"TEXT"|FILE ...', "variations": "FILE"}
"""The positional arguments of a task, for its usage, if they are not a prompt."""
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


def main() -> None:
    """The `kandinsky22` command: `run` with the arguments of the process, and fewer garbage collections."""
    warnings.filterwarnings("ignore", module=r"PIL\.")  # damaged files, which are refused or read
    let_threads_sleep()
    gc.set_threshold(GC_THRESHOLD)  # importing torch creates many long-lived objects: saves 1/20 of a short command
    streams = open_lasting()
    try:
        sys.exit(run(sys.argv[1:]) or _status_of(streams))
    finally:
        gc.freeze()  # skips a last collection at exit: saves another 1/6


def _status_of(streams: Sequence[LastingStream]) -> int:
    """The exit status of a command that succeeded: `BROKEN_PIPE` if its reader had closed the pipe before the end."""
    sys.stdout.flush()
    error = next((stream.error for stream in streams if stream.error is not None), None)
    if error is None or isinstance(error, BrokenPipeError):
        return 0 if error is None else BROKEN_PIPE
    _print_error(f"the output could not be written: {error.strerror}")
    return BAD_INPUT


def run(arguments: Sequence[str]) -> int:
    """Run a command line; returns the exit status."""
    try:
        return _dispatch(arguments) or 0
    except KeyboardInterrupt as stop:
        _print_error(str(stop) or "stopped; the files written so far are complete")
        return INTERRUPTED
    except (ValueError, OSError, ArithmeticError, MemoryError, RuntimeError) as error:
        message = _user_message(error)
        if message is None:
            raise
        _print_error(message)
        return BAD_INPUT


def _dispatch(arguments: Sequence[str]) -> int | None:
    """Run the command or the task that the first argument names, or else the default task, for which it is a prompt."""
    first = arguments[0] if arguments else ""
    if first in COMMANDS:
        module, _, function = COMMANDS[first][1].partition(":")
        status: int | None = getattr(import_module(module), function or "main")(arguments[1:])
        return status
    from kandinsky22.cli import paint

    tasks = all_tasks()
    if first in tasks:
        name = f"kandinsky22 {first}"
        positionals = POSITIONALS.get(first, '"PROMPT"')
        usage = f"{name} [options] {positionals}"
        paint.main(tasks[first], arguments[1:], name=name, usage=usage, epilog=EXAMPLES.get(first, ""))
        return None
    summaries = {name: _summary(task) for name, task in tasks.items()}
    summaries |= {name: summary for name, (summary, _) in COMMANDS.items()}
    lines = [f"  {name:11} {summary}" for name, summary in summaries.items()]
    epilog = "\n".join(["commands:", *lines, "", EXAMPLES[DEFAULT_TASK]])
    names = [*COMMANDS, *tasks]
    paint.main(tasks[DEFAULT_TASK], arguments, name="kandinsky22", commands=names, usage=USAGE, epilog=epilog)
    return None


def _summary(task: Task) -> str:
    """What a task does: the first line of its docstring."""
    summary = (task.__doc__ or "").strip().partition("\n")[0].partition(":")[0].rstrip(".")
    return summary[:1].lower() + summary[1:]


def _user_message(error: Exception) -> str | None:
    """The message for an error that the user can fix; None for a bug."""
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error))):
        return "there is not enough memory; ask for fewer or smaller pictures with --num-images or --size"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
    return str(error) if isinstance(error, ValueError | FloatingPointError) else None


def _print_error(message: str) -> None:
    text = " ".join(message.split())
    echo(f"kandinsky22: {text if len(text) <= MAX_MESSAGE else f'{text[:MAX_MESSAGE]}...'}", error=True)
