"""Options on the command line: a task's come from its signature (see `forms`).

argparse, because it starts in 50 ms, is always there, and leaves to us how a mistake is told: typer 0.29 takes 150 ms and
pydantic with it, its errors are boxes of several lines, and a command that needs no name goes against its grain.
"""

import argparse
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple, NoReturn

from kandinsky22 import __version__
from kandinsky22.request import Request
from kandinsky22.request.task_schema import Kind, Parameter, Task, parameters

NUMBERS = re.compile(r"-[\d.][\d.,e+-]*")
AS_WORDS = ("prompt", "images_and_prompts")
SHORTER = {"num_images": "-n", "num_inference_steps": "--steps"}
EDGE: Mapping[str, Mapping[str, Any]] = {
    "device": {"metavar": "NAME", "help": "where to compute: auto, cuda, mps, cpu (default: auto, the first there is)"},
    "dtype": {
        "metavar": "NAME",
        "help": "float32, bfloat16, float16 (default: auto: float16 on a GPU, on a CPU bfloat16 for large models)",
    },
    "placement": {
        "choices": ("keep", "offload", "sequential"),
        "help": "networks stay, leave when their stage is done, or come weight by weight (default: what fits)",
    },
    "compile": {
        "action": "store_true",
        "help": "on cuda, compile each step: the first picture of a size takes minutes, the next less time",
    },
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
        options, words = self.parse_known_args(_joined(arguments[:cut]))
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


def task_parser(task: Task, name: str, *, usage: str, epilog: str | None = None) -> Parser:
    """The options of a task and of the edge; what a task takes as words is no option."""
    summary = (inspect.getdoc(task) or "").splitlines()[0]
    parser = Parser(name, f"{summary} What is not said is the model's own choice.", usage=usage, epilog=epilog)
    add_parameters(parser, task, leave_out=AS_WORDS)
    parser.add_edge()
    return parser


def add_parameters(parser: Parser, task: Task, names: Sequence[str] = (), *, leave_out: Sequence[str] = ()) -> None:
    """Add options for what a task can be told: all of it, or `names` alone, but not what is left out."""
    for parameter in parameters(task).values():
        if parameter.name in leave_out or (names and parameter.name not in names):
            continue
        parser.option(parameter.name, short=SHORTER.get(parameter.name, ""), **_how_read(parameter))
        if parameter.name == "width":
            parser.option("size", type=size_of, metavar="HxW", help="both at once, such as 64x128; 64 is 64x64")


def request_of(task: Task, words: Mapping[str, Any], options: Mapping[str, Any]) -> Request:
    """The request that a task makes of `words` (the values of what it takes as words) and of what was typed.

    Raises `ValueError` for values out of range, and for options that the task cannot do without.
    """
    known = parameters(task)
    values = {name: value for name, value in options.items() if name in known} | {**words}
    if "size" in options:
        if "height" in values or "width" in values:
            raise ValueError("--size says both --height and --width; leave those out")
        values["height"], values["width"] = options["size"]
    for parameter in known.values():
        if parameter.required and parameter.name not in values:
            raise ValueError(f"{task.__name__} needs --{parameter.name.replace('_', '-')}: {parameter.meaning}")
    return task(**values)


def _how_read(parameter: Parameter) -> dict[str, Any]:
    """How argparse is to read a parameter."""
    read, metavar = READ[parameter.kind]
    shown = parameter.default if isinstance(parameter.default, str | int | float) else None
    said = {True: "yes", False: "no"}[shown] if isinstance(shown, bool) else shown
    how = {"type": read, "metavar": metavar, "help": parameter.meaning + (f" (default: {said})" if said else "")}
    if parameter.choices:
        how |= {"choices": parameter.choices, "metavar": "|".join(parameter.choices)}
    return how


def _joined(arguments: Sequence[str]) -> list[str]:
    """With `--option=-1,2` for `--option -1,2`, which argparse would take for an option of that name."""
    joined: list[str] = []
    for word in arguments:
        if NUMBERS.fullmatch(word) and joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _whole(text: str) -> int:
    if not re.fullmatch(r"[+-]?\d{1,20}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def _numbers(text: str) -> list[float]:
    return [_number(part) for part in text.replace(",", " ").split()]


def _yes(text: str) -> bool:
    if text.lower() not in ("yes", "no"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither yes nor no")
    return text.lower() == "yes"


def size_of(text: str) -> tuple[int, int]:
    """Height and width of "64x128"."""
    sides = text.lower().replace("×", "x").split("x")
    if len(sides) > 2:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write height x width, such as 64x128")
    return _whole(sides[0]), _whole(sides[-1])


READ: Mapping[Kind, tuple[Callable[[str], Any], str]] = {
    "text": (str, "TEXT"),
    "name": (str, "NAME"),
    "whole": (_whole, "N"),
    "number": (_number, "X"),
    "numbers": (_numbers, "X,X,..."),
    "yes": (_yes, "yes|no"),
    "picture": (str, "FILE"),
}
"""How each kind of parameter is read, and what stands for it in the help."""
