"""Painting from the command line: a task's options to a request, the request to pictures in files."""

import secrets
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from kandinsky22.checkpoints import catalog
from kandinsky22.cli.options import request_of, task_parser
from kandinsky22.cli.prompt import random_prompt, typed_prompt
from kandinsky22.cli.terminal import Display, display
from kandinsky22.request import Request
from kandinsky22.request.events import Backend, Result, Started
from kandinsky22.request.task_schema import Task, parameters, part
from kandinsky22.request.tasks import text2img

if TYPE_CHECKING:
    from kandinsky22.cli.files import Place
    from kandinsky22.engine.kandinsky import Kandinsky

OUTPUT = "out"


def main(
    task: Task, arguments: Sequence[str], *, name: str, commands: Iterable[str] = (), usage: str, epilog: str
) -> None:
    """Paint what was typed, or something at random; `commands` are what a mistyped word may have meant."""
    parser = task_parser(task, name, usage=usage, epilog=epilog)
    options, words, literal = parser.parse(arguments)
    request = request_of(task, _understood(task, words, options, literal, commands), options)

    from kandinsky22.cli import files  # Pillow is slow to start, and --help does without

    place = files.Place.of(options.get("output", OUTPUT))
    backend = load(request.model, options, request)  # before there are bars of ours: fetching has its own
    with display(options.get("quiet", False)) as shown:
        result = carry_out(request, backend, shown, place)
    written = []
    try:
        for path in files.save(result, place):
            written.append(path)
    finally:  # printed last: whoever reads may have gone
        for path in written:
            print(path)


def _understood(
    task: Task, words: list[str], options: dict[str, Any], literal: bool, commands: Iterable[str]
) -> dict[str, Any]:
    """What the words are to a task: a prompt, parts of a blend, or a picture. May draw a seed for a prompt at random."""
    known = parameters(task)
    if "images_and_prompts" in known:
        if not words:
            raise ValueError(f'{task.__name__} needs texts or files to blend; such as "a red circle" star.png')
        return {"images_and_prompts": [part(word) for word in words]}
    if "prompt" not in known:
        if len(words) > 1 or ("image" in options and words):
            raise ValueError(f"{task.__name__} takes one picture")
        return {"image": words[0]} if words else {}
    if literal and len(words) > 1:
        raise ValueError("a prompt of several words needs quotes, after a -- too")
    prompt = "".join(words) if literal else typed_prompt(words, commands, options.get("model", catalog.BOX))
    if prompt.strip():
        return {"prompt": prompt}
    if task is not text2img:
        raise ValueError(f"{task.__name__} needs a prompt, in quotes: what to paint")
    options.setdefault("seed", secrets.randbelow(2**32))
    return {"prompt": random_prompt(abs(options["seed"]), options.get("model", catalog.BOX))}


def load(model: str, options: dict[str, Any], request: Request | None = None) -> "Kandinsky":
    """The model, fetched if it is a published one and not here; of that, what `request` needs. torch arrives here."""
    from kandinsky22.engine.kandinsky import Kandinsky

    return Kandinsky.load(
        model,
        device=options.get("device"),
        dtype=options.get("dtype"),
        placement=options.get("placement"),
        compiled=options.get("compile", False),
        request=request,
    )


def carry_out(request: Request, backend: Backend, shown: Display, place: "Place") -> Result:
    """Paint, telling what happens. Raises `ValueError` before anything is painted if it could not be written."""
    from kandinsky22.cli.files import check_room

    for event in backend.stream(request):
        if isinstance(event, Started):
            check_room(place, event.request)
        shown.show(event)
        if isinstance(event, Result):
            return event
    raise AssertionError("a stream ends with its result")
