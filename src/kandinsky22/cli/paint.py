"""Painting from the command line: a task's options to a request, the request to pictures in files."""

import secrets
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from kandinsky22.cli.options import Task, request_of, task_parser
from kandinsky22.cli.prompt import random_prompt, typed_prompt
from kandinsky22.cli.terminal import Display, display
from kandinsky22.events import Backend, Result, Started
from kandinsky22.request import Request

if TYPE_CHECKING:
    from kandinsky22.cli.files import Place

OUTPUT = "out"


def main(
    task: Task, arguments: Sequence[str], *, name: str, commands: Iterable[str] = (), usage: str, epilog: str
) -> None:
    """Paint what was typed, or something at random; `commands` are what a mistyped word may have meant."""
    parser = task_parser(task, name, usage=usage, epilog=epilog)
    options, words, literal = parser.parse(arguments)
    model = options.get("model", request_of(task, "", {}).model)
    if literal and len(words) > 1:
        raise ValueError("a prompt of several words needs quotes, after a -- too")
    prompt = "".join(words) if literal else typed_prompt(words, commands, model)
    if not prompt.strip():
        options.setdefault("seed", secrets.randbelow(2**32))
        prompt = random_prompt(abs(options["seed"]))
    request = request_of(task, prompt, options)

    from kandinsky22.cli import files  # Pillow is slow to start, and --help does without

    place = files.Place.of(options.get("output", OUTPUT))
    with display(options.get("quiet", False)) as shown:
        result = carry_out(request, load(request.model, options), shown, place)
    written = []
    try:
        for path in files.save(result, place):
            written.append(path)
    finally:  # printed last: whoever reads may have gone
        for path in written:
            print(path)


def load(model: str, options: dict[str, Any]) -> Backend:
    """The model as a backend. torch arrives here."""
    from kandinsky22.kandinsky import Kandinsky

    return Kandinsky.load(model, device=options.get("device"), dtype=options.get("dtype"))


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
