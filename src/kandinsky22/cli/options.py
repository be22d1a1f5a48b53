"""Options on the command line: a task's come from its signature, and what they mean from `tasks.MEANINGS`.

argparse, because it starts in 50 ms, is always there, and leaves to us how a mistake is told: typer 0.29 takes 150 ms and
pydantic with it, its errors are boxes of several lines, and a command that needs no name goes against its grain.
"""

import argparse
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from types import NoneType
from typing import Any, NamedTuple, NoReturn, get_args

from kandinsky22 import __version__, tasks
from kandinsky22.request import Request

Task = Callable[..., Request]

SHORTER = {"num_images": "-n", "num_inference_steps": "--steps"}
EDGE: Mapping[str, Mapping[str, Any]] = {
    "device": {"metavar": "NAME", "help": "where to compute: cpu, cuda, mps (default: cuda if there is one, else cpu)"},
    "dtype": {"metavar": "NAME", "help": "float32, bfloat16 or float16 (default: float16 on cuda, else float32)"},
    "output": {
        "short": "-o",
        "metavar": "PLACE",
        "help": "folder for the pictures, or a file ending in .png (default: out)",
    },
    "quiet": {"short": "-q", "action": "store_true", "help": "say nothing but where the pictures are"},
}
"""Options that are no part of a request: where it is carried out, and what becomes of the pictures."""


class Parsed(NamedTuple):
    """What was typed: the options that were given, the words beside them, and whether these followed a `--`."""

    options: dict[str, Any]
    words: list[str]
    literal: bool


class Parser(argparse.ArgumentParser):
    """Options only; words are left to the command. A mistake is a `ValueError`, one sentence, like any other bad input."""

    def __init__(self, name: str, description: str, *, usage: str, epilog: str | None = None) -> None:
        super().__init__(
            prog=name,
            usage=usage,
            description=description,
            epilog=epilog,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32),
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
        )
        self.add_argument("--version", action="version", version=f"kandinsky22 {__version__}")

    def option(self, name: str, *, short: str = "", **how: Any) -> None:
        """Add `--some-name` for `some_name`, and a shorter way to say it."""
        flags = filter(None, (short, f"--{name.replace('_', '-')}"))
        self.add_argument(*sorted(flags, key=len), dest=name, **how)

    def add_edge(self, *names: str) -> None:
        """Add options that are no part of a request."""
        for name in names or EDGE:
            self.option(name, **EDGE[name])

    def parse(self, arguments: Sequence[str]) -> Parsed:
        """What was typed. Everything after a `--` is words, whatever it begins with."""
        literal = "--" in arguments
        cut = list(arguments).index("--") if literal else len(arguments)
        options, words = self.parse_known_args(arguments[:cut])
        for word in words:
            if word.startswith("-") and " " not in word and word != "-":
                self._no_such(word.partition("=")[0])
        return Parsed(vars(options), [*words, *arguments[cut + 1 :]], literal)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message.removeprefix('argument ')}; see {self.prog} --help")

    def _no_such(self, option: str) -> NoReturn:
        close = get_close_matches(option, self._option_string_actions, 1)
        dashed = f"see {self.prog} --help, or put a prompt that begins with a dash after --"
        raise ValueError(f"there is no option {option}; {f'did you mean {close[0]}?' if close else dashed}")


def all_tasks() -> dict[str, Task]:
    """The tasks by name."""
    found = {name: value for name, value in vars(tasks).items() if inspect.isfunction(value) and name[0] != "_"}
    return {name: value for name, value in found.items() if value.__module__ == tasks.__name__}


def task_parser(task: Task, name: str, *, usage: str, epilog: str | None = None) -> Parser:
    """The options of a task and of the edge."""
    parameters = inspect.signature(task).parameters
    summary = (inspect.getdoc(task) or "").splitlines()[0]
    parser = Parser(name, f"{summary} What is not said is the model's own choice.", usage=usage, epilog=epilog)
    for parameter in parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            parser.option(parameter.name, short=SHORTER.get(parameter.name, ""), **_kind(parameter))
        if parameter.name == "width":
            parser.option("size", type=_size, metavar="HxW", help="both at once, such as 64x128; 64 is 64x64")
    parser.add_edge()
    return parser


def request_of(task: Task, prompt: str, options: Mapping[str, Any]) -> Request:
    """The request that a task makes of a prompt and what was typed. Raises `ValueError` for values out of range."""
    known = inspect.signature(task).parameters
    values = {name: value for name, value in options.items() if name in known}
    if "size" in options:
        if "height" in values or "width" in values:
            raise ValueError("--size says both --height and --width; leave those out")
        values["height"], values["width"] = options["size"]
    return task(prompt, **values)


def _kind(parameter: inspect.Parameter) -> dict[str, Any]:
    """How argparse is to read a parameter, from its type and default."""
    (kind,) = set(get_args(parameter.annotation) or (parameter.annotation,)) - {NoneType}
    text = "TEXT" if "prompt" in parameter.name else "NAME"
    read, metavar = {int: (_whole, "N"), float: (_number, "X"), str: (str, text)}[kind]
    default = "" if parameter.default is None else f" (default: {parameter.default})"
    return {"type": read, "metavar": metavar, "help": tasks.MEANINGS[parameter.name] + default}


def _whole(text: str) -> int:
    if not re.fullmatch(r"[+-]?\d{1,20}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def _size(text: str) -> tuple[int, int]:
    sides = text.lower().replace("×", "x").split("x")
    if len(sides) > 2:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write height x width, such as 64x128")
    return _whole(sides[0]), _whole(sides[-1])
