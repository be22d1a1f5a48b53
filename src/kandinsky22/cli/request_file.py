"""Reading a file of requests: each line is a prompt, the options of a task, or a request as it is stored.

.jsonl: a line is a prompt as a JSON string, an object with the options of a task by their names in Python, or what
`Request.to_json` returned. .csv: a header with such names, and a row for each request. .txt: a prompt a line.
An object or a row may also have `task`, which is text2img otherwise, and `name`, which names the files of its pictures.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from kandinsky22.backends.run_folder import FORBIDDEN, MAX_ID_BYTES, can_name_file, seed_of
from kandinsky22.cli.app import DEFAULT_TASK
from kandinsky22.cli.options import PARSERS, size_of
from kandinsky22.cli.replay import input_pictures
from kandinsky22.files import expand, parse_json
from kandinsky22.request import Part, Request
from kandinsky22.request.task_schema import Parameter, all_tasks, parameters, parse_part

SUFFIXES = (".jsonl", ".csv", ".txt")
SEPARATOR = "|"  # between the parts of a blend in a .csv
TEXTS = ("text", "string", "picture")  # kinds of parameters


@dataclass(frozen=True, slots=True)
class Line:
    """A request, with a seed. id: its name, or else the number of its line; pictures are files named by it."""

    number: int
    id: str
    request: Request

    @property
    def stems(self) -> list[str]:
        """The names of its pictures' files without suffix: the id, or for several pictures ID-1, ID-2, ..."""
        n = self.request.num_images
        return [self.id] if n == 1 else [f"{self.id}-{k}" for k in range(1, n + 1)]


@dataclass
class RequestFile:
    """The lines of a file that are requests, and the errors of the others by line number."""

    lines: list[Line] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lines) + len(self.errors)

    def change(self, function: Callable[[Request], Request]) -> None:
        """Change every request; one for which the function raises `ValueError` becomes an error of its line."""
        lines, self.lines = self.lines, []
        for line in lines:
            try:
                self.lines.append(replace(line, request=function(line.request)))
            except ValueError as error:
                self.errors[line.number] = " ".join(str(error).split())


def read(path: Path, text: str, defaults: Mapping[str, Any], seed: int) -> RequestFile:
    """The requests of a file with this text. Files that it names are looked for in its folder; empty lines are skipped.

    defaults: options for lines that do not give them; a stored request takes none. seed: from which the seeds of lines
    without one are derived. Raises `ValueError` for another kind of file, and for a table that cannot be read.
    """
    file = RequestFile()
    first_with: dict[str, int] = {}  # the line that has a file name, in lower case, since some file systems ignore case
    for number, parse in _entries(path, text):
        try:
            line = _line(number, parse(), path, defaults, seed)
            for stem in line.stems:
                if (first := first_with.setdefault(stem.casefold(), number)) != number:
                    raise ValueError(f"line {first} has the same name, {stem!r}; give each its own")
        except (ValueError, OSError, argparse.ArgumentTypeError) as error:
            file.errors[number] = " ".join(str(error).split())
        else:
            file.lines.append(line)
    return file


def _entries(path: Path, text: str) -> Iterator[tuple[int, Callable[[], Any]]]:
    """The lines that are not empty: the number, and a function that returns the values or raises `ValueError`."""
    suffix = path.suffix.lower()
    if suffix == ".csv":
        from kandinsky22.evaluation.captions import table_records

        header: list[str] = []
        for number, row in table_records(path, text, ","):
            if header and any(map(str.strip, row)):
                yield number, partial(_row_values, header, row)
            header = header or [name.strip() for name in row]
    elif suffix in SUFFIXES:
        parse = parse_json if suffix == ".jsonl" else str.strip
        for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
            if line.strip():
                yield number, partial(parse, line)
    else:
        raise ValueError(f"requests are read from {', '.join(SUFFIXES)} files, got {path.name!r}")


def _row_values(header: Sequence[str], row: Sequence[str]) -> dict[str, str]:
    if len(row) != len(header):
        raise ValueError(f"it has {len(row)} fields and the header has {len(header)}; quote fields that hold a comma")
    return {name: field for name, field in zip(header, row, strict=True) if field.strip()}


def _line(number: int, values: Any, path: Path, defaults: Mapping[str, Any], seed: int) -> Line:
    if isinstance(values, str):
        values = {"prompt": values}
    if not isinstance(values, dict):
        raise ValueError(f"a request is a prompt or an object with options, got {json.dumps(values)[:80]}")
    name = _name(values["name"]) if values.get("name") is not None else f"{number:05}"
    values = {key: value for key, value in values.items() if key != "name" and value is not None}
    if "condition" in values:
        request = Request.from_json(json.dumps(values))
        request = request.with_pictures(input_pictures(request, path, (), "put it there"))
    else:
        request = _task_request(values, path.parent, defaults)
    return Line(number, name, request if request.seed is not None else replace(request, seed=seed_of(seed, name)))


def _name(value: Any) -> str:
    """A name that can name a file, without .png."""
    name = str(value).strip()
    name = name[:-4] if name.lower().endswith(".png") else name
    if not can_name_file(name) or len(name.encode()) > MAX_ID_BYTES:
        raise ValueError(
            f"the name {name!r} cannot name a file; leave out folders, {FORBIDDEN} and a dot at its start, and take at "
            f"most {MAX_ID_BYTES} bytes"
        )
    return name


def _task_request(values: Mapping[str, Any], folder: Path, defaults: Mapping[str, Any]) -> Request:
    """The request of a task's options."""
    tasks, name = all_tasks(), values.get("task", DEFAULT_TASK)
    if not isinstance(name, str) or name not in tasks:
        raise ValueError(f"there is no task {name!r}; the tasks are {', '.join(tasks)}")
    known = parameters(tasks[name])
    options = {key: value for key, value in values.items() if key != "task"}
    if "size" in options:
        if "height" in options or "width" in options:
            raise ValueError("size, which is width x height, sets both height and width; leave those out")
        options["width"], options["height"] = _size(options.pop("size"))
    if unknown := sorted(options.keys() - known.keys()):
        raise ValueError(f"{name} has no option {unknown[0]!r}; its options are {', '.join(known)}")
    for parameter in known.values():
        if parameter.required and parameter.name not in options:
            raise ValueError(f"{name} needs {parameter.name!r}: {parameter.help}")
    converted = {key: _convert(known[key], value, folder) for key, value in options.items()}
    return tasks[name](**{key: value for key, value in defaults.items() if key in known} | converted)


def _size(value: Any) -> tuple[int, int]:
    """Width and height of a size such as "192x128" or 128."""
    try:
        return size_of(str(value))
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"size: {error}") from None


def _convert(parameter: Parameter, value: Any, folder: Path) -> Any:
    """A JSON value, or the text of a field, as an option of a task. Raises `ValueError` for one of another kind."""
    if parameter.kind == "parts":
        return _parts(value, folder)
    if parameter.kind == "loras":
        files = value.split(SEPARATOR) if isinstance(value, str) else value
        if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
            raise ValueError("loras must be a list of files, each with its scale after a colon")
        return [str(folder / expand(file.strip())) for file in files]
    if isinstance(value, bool):
        value = "yes" if value else "no"
    elif isinstance(value, list):
        value = ",".join(map(str, value))
    elif isinstance(value, int | float) and parameter.kind not in TEXTS:
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"{parameter.name} cannot be {json.dumps(value)[:80]}")
    parse, _ = PARSERS[parameter.kind]
    try:
        value = parse(value)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{parameter.name}: {error}") from None
    if parameter.choices and value not in parameter.choices:
        raise ValueError(f"{parameter.name} must be one of {', '.join(parameter.choices)}, got {value!r}")
    return folder / expand(value) if parameter.kind == "picture" else value


def _parts(value: Any, folder: Path) -> list[Part]:
    words = [word.strip() for word in value.split(SEPARATOR)] if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("images_and_prompts must be a list of texts and names of files")
    return [parse_part(word, folder) for word in words]
