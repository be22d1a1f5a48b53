"""The command of a task: from its arguments to a request, and from the request to pictures in files."""

import itertools
import os
import secrets
import sys
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky22.checkpoints import catalog, locate
from kandinsky22.checkpoints.metadata import read_metadata
from kandinsky22.cli import large_work
from kandinsky22.cli.model_defaults import model_defaults
from kandinsky22.cli.options import request_of, task_parser
from kandinsky22.cli.terminal import Display, display
from kandinsky22.console import echo
from kandinsky22.request import Request
from kandinsky22.request.events import Backend, Result, Started, stream
from kandinsky22.request.task_schema import Task, parameters, parse_part
from kandinsky22.request.tasks import text2img
from kandinsky22.request.vocabulary import known_words

if TYPE_CHECKING:
    from kandinsky22.backends.remote import Remote
    from kandinsky22.cli.output import Destination
    from kandinsky22.engine.kandinsky import Kandinsky

OUTPUT = "out"
LOCAL_OPTIONS = ("device", "dtype", "placement", "compile")  # of a model in this process
OPTIONS_AS_WORDS = {"help": "--help", "version": "--version"}


def main(
    task: Task, arguments: Sequence[str], *, name: str, commands: Iterable[str] = (), usage: str, epilog: str
) -> None:
    """Run a task's command; `commands` are the names that a mistyped word is compared with."""
    parser = task_parser(task, name, usage=usage, epilog=epilog, defaults=_defaults_for_help(arguments))
    options, words, literal = parser.parse(arguments)
    request = request_of(task, _positionals(task, words, options, literal, commands), options)

    from kandinsky22.cli import output  # imports Pillow, which is slow and not needed for --help

    destination = output.Destination.of(options.get("output", OUTPUT))
    destination.check(request)
    backend = load(request.model, options, request)  # before the display, since fetching shows its own progress bars
    if not server_of(options):  # which has limits of its own
        large_work.confirm(backend, request, yes="yes" in options)
    with display(options.get("quiet", False)) as view:
        result = run_request(request, backend, view, destination)
    helps = len(result.pictures) > 1 and destination.name is None and sys.stdout.isatty() and "quiet" not in options
    for path in output.save(result, destination, with_sheet=options.get("sheet", helps)):
        echo(path)


def server_of(options: Mapping[str, Any]) -> str:
    """The URL of the server that is to paint, "" for none.

    Raises `ValueError` for options that only make sense here.
    """
    url: str = options.get("server", os.environ.get("KANDINSKY22_SERVER", ""))
    if url and (local := [name for name in LOCAL_OPTIONS if options.get(name)]):
        raise ValueError(f"the server decides about --{local[0]}; leave it out, or paint here with --server ''")
    return url


def load(model: str, options: Mapping[str, Any], request: Request | None = None) -> "Kandinsky | Remote":
    """The server that the options name; or else load a model, which imports torch.

    A published model is fetched first, as far as `request` needs it.
    """
    if url := server_of(options):
        from kandinsky22.backends.remote import Remote

        return Remote.of_environment(url)
    from kandinsky22.engine.kandinsky import Kandinsky

    return Kandinsky.load(
        model,
        device=options.get("device"),
        dtype=options.get("dtype"),
        placement=options.get("placement"),
        compiled=options.get("compile", False),
        request=request,
    )


def run_request(request: Request, backend: Backend, view: Display, destination: "Destination") -> Result:
    """Run a request and display its events. Raises `ValueError` before painting if the result could not be saved."""
    from kandinsky22.cli.output import check_space

    for event in stream(backend, request, view.preview):
        if isinstance(event, Started):
            check_space(destination, event.request)
        view.show(event)
        if isinstance(event, Result):
            return event
    raise AssertionError("the last event of a stream is its result")


def random_prompt(seed: int, model: str) -> str:
    """A random caption of the picture world in words that a model knows; the same for the same seed."""
    import numpy as np

    from kandinsky22.compositions import caption, sample

    known = _known_words(model)
    rng = np.random.default_rng(seed)
    captions = (caption(sample(rng)) for _ in range(1000))  # the world has more words than some models were trained on
    return next((text for text in captions if known >= set(text.replace(",", "").split())), caption(sample(rng)))


def _defaults_for_help(arguments: Sequence[str]) -> dict[str, str]:
    """The defaults of the model that a request for help names."""
    if not {"-h", "--help"} & set(arguments):
        return {}
    named = [word.partition("=")[2] for word in arguments if word.startswith("--model=")]
    named += [word for option, word in itertools.pairwise(arguments) if option == "--model"]
    return model_defaults(named[0] if named else catalog.BOX)


def _positionals(
    task: Task, words: list[str], options: dict[str, Any], literal: bool, commands: Iterable[str]
) -> dict[str, Any]:
    """The parameters that a task takes as positional arguments: a prompt, the parts of a blend, or a picture.

    literal: the words followed a `--`. Without a prompt, text2img gets a random one, for which a seed is drawn if none
    was given.
    """
    known = parameters(task)
    if "images_and_prompts" in known:
        if not words:
            raise ValueError(f'{task.__name__} needs texts or files to blend, such as "a red circle" star.png')
        return {"images_and_prompts": [parse_part(word) for word in words]}
    if "prompt" not in known:
        if len(words) > 1 or ("image" in options and words):
            raise ValueError(f"{task.__name__} takes one picture; name a single file")
        return {"image": words[0]} if words else {}
    if literal and len(words) > 1:
        raise ValueError("a prompt of several words needs quotes, after a -- too")
    prompt = "".join(words) if literal else _typed_prompt(words, commands, options.get("model", catalog.BOX))
    if prompt.strip():
        return {"prompt": prompt}
    if task is not text2img:
        raise ValueError(f"{task.__name__} needs a prompt in quotes: what to paint")
    options.setdefault("seed", secrets.randbelow(2**32))
    return {"prompt": random_prompt(abs(options["seed"]), options.get("model", catalog.BOX))}


def _typed_prompt(words: Sequence[str], commands: Iterable[str], model: str) -> str:
    """The prompt in words without a `--` before them, "" if there is none.

    Raises `ValueError` if they look like a mistyped command, an unquoted prompt or the file of a picture.
    """
    if not words:
        return ""
    first = words[0]
    command = _similar_command(first, [*commands, *OPTIONS_AS_WORDS])
    mistake = "the command goes first" if command == first else f'no command "{first}"; did you mean {command}?'
    if len(words) > 1:
        unquoted = f'a prompt of several words needs quotes: kandinsky22 "{" ".join(words)}"'
        raise ValueError(mistake if command else unquoted)
    if command and first.lower() not in _known_words(model):
        raise ValueError(f"{mistake} (to paint that word: kandinsky22 -- {first})")
    if first.lower().endswith(".png") and Path(first).is_file():
        raise ValueError(f"{first} is a picture; did you mean kandinsky22 show {first}, or replay?")
    return first


def _similar_command(word: str, commands: Sequence[str]) -> str:
    """The command that a word resembles, or ""."""
    close = get_close_matches(word.lower(), commands, 1, 0.7)
    return OPTIONS_AS_WORDS.get(close[0], close[0]) if close else ""


def _known_words(model: str) -> set[str]:
    """The vocabulary of a small model; empty for other models."""
    try:
        return known_words(read_metadata(locate.part_folders(model).get(catalog.DECODER)).words)
    except ValueError:  # loading the model reports what is wrong with it
        return set()
