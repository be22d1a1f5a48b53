"""What a task can be told, as data: from its signature, for whoever makes a command, a route or a form of it. No torch."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeAlias, get_args, get_origin

from kandinsky22.request import tasks
from kandinsky22.request.embedding import Embedding
from kandinsky22.request.parts import Part, Text
from kandinsky22.request.picture import Picture, Source
from kandinsky22.request.request import Request

Task: TypeAlias = Callable[..., Request]
Kind = Literal["text", "name", "whole", "number", "numbers", "yes", "picture", "parts"]
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One thing a task can be told. default: None is the model's own choice."""

    name: str
    kind: Kind
    meaning: str
    required: bool = False
    default: Any = None
    choices: tuple[str, ...] = ()


def all_tasks() -> dict[str, Task]:
    """The tasks by name: every public function of `tasks`."""
    found = {name: value for name, value in vars(tasks).items() if inspect.isfunction(value) and name[0] != "_"}
    return {name: value for name, value in found.items() if value.__module__ == tasks.__name__}


def parameters(task: Task) -> dict[str, Parameter]:
    """What a task can be told, by name, in order; `**how` stands for the fields of its typed dictionary."""
    found = {}
    for parameter in inspect.signature(task).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            (how,) = get_args(parameter.annotation)
            for name, annotation in how.__annotations__.items():
                found[name] = _parameter(name, annotation, _REQUEST_DEFAULTS.get(name))
        else:
            found[parameter.name] = _parameter(parameter.name, parameter.annotation, parameter.default)
    return found


def part(word: str) -> Part:
    """What a word is: a saved embedding's file, a picture's file, or else a text. Raises `ValueError` for a bad file."""
    ending = Path(word).suffix.lower()
    if ending == ".safetensors":
        return Embedding.load(Path(word).expanduser())
    return Picture.of(word) if ending in PICTURES else Text(word)


def _parameter(name: str, annotation: Any, default: Any) -> Parameter:
    kinds = set(get_args(annotation) or (annotation,)) - {NoneType}
    required = default is inspect.Parameter.empty
    choices: tuple[str, ...] = ()
    kind: Kind
    if get_origin(annotation) is Literal:
        kind, choices = "name", get_args(annotation)
    elif kinds >= set(get_args(Source)):
        kind = "picture"
    elif name == "images_and_prompts":
        kind = "parts"
    elif name == "weights":
        kind = "numbers"
    elif kinds == {str}:
        kind = "text" if "prompt" in name else "name"
    else:
        (only,) = kinds
        kind = _KINDS[only]
    return Parameter(name, kind, tasks.MEANINGS[name], required, None if required else default, choices)


_KINDS: dict[Any, Kind] = {int: "whole", float: "number", bool: "yes", tuple[float, float]: "numbers"}
_REQUEST_DEFAULTS = {f.name: f.default for f in fields(Request) if f.default is not MISSING}
