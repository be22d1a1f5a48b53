"""The parameters of the tasks as data, read from their signatures, to build commands, routes and forms.

Imports no torch.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeAlias, get_args, get_origin

from kandinsky22.files import expand
from kandinsky22.request import tasks
from kandinsky22.request.embedding import Embedding
from kandinsky22.request.parts import Part, Sampling, Text
from kandinsky22.request.picture import Picture, Source
from kandinsky22.request.picture_file import SUFFIXES
from kandinsky22.request.request import Request

Task: TypeAlias = Callable[..., Request]
Kind = Literal["text", "string", "integer", "number", "numbers", "boolean", "picture", "parts", "loras"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a task.

    A default of None is the model's own choice; `choices` is empty if any value is possible.
    """

    name: str
    kind: Kind
    help: str
    required: bool = False
    default: Any = None
    choices: tuple[str, ...] = ()


def all_tasks() -> dict[str, Task]:
    """The tasks by name: every public function of `tasks`."""
    functions = {name: value for name, value in vars(tasks).items() if inspect.isfunction(value) and name[0] != "_"}
    return {name: value for name, value in functions.items() if value.__module__ == tasks.__name__}


def parameters(task: Task) -> dict[str, Parameter]:
    """The parameters of a task by name, in order; `**options` is expanded to the fields of its typed dictionary."""
    result = {}
    for parameter in inspect.signature(task).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            (options,) = get_args(parameter.annotation)
            for name, annotation in options.__annotations__.items():
                result[name] = _parameter(name, annotation, _REQUEST_DEFAULTS.get(name))
        else:
            result[parameter.name] = _parameter(parameter.name, parameter.annotation, parameter.default)
    return result


def typed(parameter: Parameter, value: Any) -> Any:
    """A value of JSON as what the task takes, for kinds other than "picture" and "parts".

    Raises `ValueError` for another type, or a value that is none of the choices.
    """
    types: Any = JSON_TYPES[parameter.kind]
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise ValueError(f"{parameter.name} must be a {parameter.kind}, got {value!r:.80}")
    if parameter.kind == "numbers":
        if any(not isinstance(number, int | float) or isinstance(number, bool) for number in value):
            raise ValueError(f"{parameter.name} must be numbers, got {value!r:.80}")
        return [float(number) for number in value]
    if parameter.kind == "loras" and not all(isinstance(file, str) for file in value):
        raise ValueError(f"{parameter.name} must be files, each with its scale after a colon, got {value!r:.80}")
    if parameter.choices and value not in parameter.choices:
        raise ValueError(f"{parameter.name} must be one of {', '.join(parameter.choices)}")
    return float(value) if parameter.kind == "number" else value


def parse_part(argument: str, folder: Path = Path()) -> Part:
    """An argument as an embedding or a picture, by its file suffix, or else as a text.

    folder: where files are looked for. Raises `ValueError` for a bad file.
    """
    suffix = Path(argument).suffix.lower()
    if suffix == ".safetensors":
        return Embedding.load(folder / expand(argument))
    return Picture.of(folder / expand(argument)) if suffix in SUFFIXES else Text(argument)


def _parameter(name: str, annotation: Any, default: Any) -> Parameter:
    types = set(get_args(annotation) or (annotation,)) - {NoneType}
    required = default is inspect.Parameter.empty
    choices: tuple[str, ...] = ()
    kind: Kind
    if get_origin(annotation) is Literal:
        kind, choices = "string", get_args(annotation)
    elif types >= set(get_args(Source)):
        kind = "picture"
    elif name in ("images_and_prompts", "loras"):
        kind = "loras" if name == "loras" else "parts"
    elif name == "weights":
        kind = "numbers"
    elif types == {str}:
        kind = "text" if "prompt" in name else "string"
    else:
        (only_type,) = types
        kind = _KINDS[only_type]
    return Parameter(name, kind, tasks.HELP[name], required, None if required else default, choices)


JSON_TYPES: Mapping[Kind, tuple[type, ...]] = {
    "text": (str,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "numbers": (list, tuple),
    "boolean": (bool,),
    "loras": (list, tuple),
}
"""The types of a parameter's value in JSON."""
_KINDS: dict[Any, Kind] = {int: "integer", float: "number", bool: "boolean", tuple[float, float]: "numbers"}
_REQUEST_DEFAULTS = {
    f.name: f.default for f in fields(Request) if f.default is not MISSING and not isinstance(f.default, Sampling)
}  # the option `prior` is a name, the field a `Sampling`
