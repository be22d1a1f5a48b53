"""Command line options: those of a task come from its signature (see `task_schema`).

This uses argparse because it starts in 50 ms, needs no dependency and lets us word the errors. typer 0.29 takes 150 ms
and needs pydantic, prints errors as boxes of several lines, and does not support a command without a name.
"""

import argparse
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple, NoReturn

from kandinsky22 import __version__
from kandinsky22.request import Request
from kandinsky22.request.task_schema import Kind, Parameter, Task, all_tasks, parameters

MAX_DIGITS = 20
NUMBERS = re.compile(r"-[\d.][\d.,e+-]*")
POSITIONALS = ("prompt", "images_and_prompts")
SHORT_OPTIONS = {"num_images": "-n", "num_inference_steps": "--steps"}
EDGE: Mapping[str, Mapping[str, Any]] = {
    "device": {
        "metavar": "NAME",
        "help": "where to compute: auto, cuda, mps, cpu (default: auto, the first one available)",
    },
    "dtype": {
        "metavar": "NAME",
        "help": "float32, bfloat16, float16 (default: auto: float16 on a GPU, on a CPU bfloat16 for large models)",
    },
    "placement": {
        "choices": ("keep", "offload", "sequential"),
        "help": "keep all networks loaded, offload each after its stage, or load weight by weight (default: what fits)",
    },
    "compile": {
        "action": "store_true",
        "help": "on cuda, compile each step: the first picture of a size takes minutes, later ones less time",
    },
    "server": {
        "metavar": "URL",
        "help": "paint at this `kandinsky22 serve` instead of here (default: $KANDINSKY22_SERVER, if that is set)",
    },
    "output": {
        "short": "-o",
        "metavar": "PLACE",
        "help": "a folder, a file ending in .png, .jpg or .webp, or - for standard output (default: out)",
    },
    "quiet": {"short": "-q", "action": "store_true", "help": "print nothing but the paths of the pictures"},
}
"""Options that are not part of a request: where it is computed, and where the pictures go."""
YES_HELP = "paint without asking, however long it takes"
SHEET_HELP = "also write a page with all pictures, enlarged (default: of several, in a terminal, into a folder)"
SAMPLING = ("steps", "scale", "sampler", "interval", "reuse", "speed")
GROUPS: Mapping[str, Callable[[str], bool]] = {
    "output": lambda name: name in ("output", "quiet", "sheet", "yes"),
    "where it is computed": lambda name: name in ("model", *EDGE),
    "the prior, which turns texts into image embeddings": lambda name: (
        name.startswith("prior") and name != "prior_seed"
    ),
    "random numbers": lambda name: "seed" in name or name == "variation_strength",
    "size and number": lambda name: name in ("height", "width", "size", "aspect", "num_images"),
    "the decoder, which paints": lambda name: name.endswith(SAMPLING),
}
"""The groups of options in the help, and which names belong to each: the first that fits, or else the task's own."""


class Parsed(NamedTuple):
    """A parsed command line: the given options, the positional words, and whether a `--` preceded the last of these."""

    options: dict[str, Any]
    words: list[str]
    literal: bool


class Parser(argparse.ArgumentParser):
    """Parses options; positional words are left to the command. Errors are one-sentence `ValueError`s."""

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
        self.elsewhere: Mapping[str, Sequence[str]] = {}  # the commands that have an option, if this one has not

    def option(self, name: str, *, short: str = "", **settings: Any) -> None:
        """Add the option `--some-name` for the name `some_name`, and a short one; `settings` go to `add_argument`."""
        flags = filter(None, (short, flag_of(name)))
        self._group(name).add_argument(*sorted(flags, key=len), dest=name, **settings)

    def add_edge(self, *names: str) -> None:
        """Add some of the `EDGE` options, or all of them."""
        for name in names or EDGE:
            self.option(name, **EDGE[name])

    def parse(self, arguments: Sequence[str]) -> Parsed:
        """Parse a command line; everything after a `--` is positional. Raises `ValueError` for an unknown option."""
        literal = "--" in arguments
        cut = list(arguments).index("--") if literal else len(arguments)
        options, words = self.parse_known_args(_joined(arguments[:cut]))
        for word in words:
            if word.startswith("-") and " " not in word and word != "-":
                self._unknown_option(word.partition("=")[0])
        return Parsed(vars(options), [*words, *arguments[cut + 1 :]], literal)

    def _group(self, name: str) -> "argparse._ActionsContainer":
        """The group of an option in the help."""
        title = next((title for title, belongs in GROUPS.items() if belongs(name)), None)
        known = {group.title: group for group in self._action_groups}
        return self if title is None else known.get(title) or self.add_argument_group(title)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message.removeprefix('argument ')}; see {self.prog} --help")

    def _unknown_option(self, option: str) -> NoReturn:
        if commands := self.elsewhere.get(option):
            raise ValueError(f"{self.prog} has no {option}; use it with kandinsky22 {' or '.join(commands)}")
        close = get_close_matches(option, self._option_string_actions, 1)
        see_help = f"see {self.prog} --help, or put a prompt that begins with a dash after --"
        raise ValueError(f"there is no option {option}; {f'did you mean {close[0]}?' if close else see_help}")


def task_parser(
    task: Task, name: str, *, usage: str, epilog: str | None = None, defaults: Mapping[str, str] | None = None
) -> Parser:
    """A parser for the options of a task and all `EDGE` options. defaults: see `add_parameters`."""
    summary = (inspect.getdoc(task) or "").splitlines()[0]
    parser = Parser(name, f"{summary} Options left out are the model's own choice.", usage=usage, epilog=epilog)
    add_parameters(parser, task, leave_out=POSITIONALS, defaults=defaults)
    parser.add_edge()
    parser.option("yes", action="store_true", help=YES_HELP)
    parser.option("sheet", action=argparse.BooleanOptionalAction, help=SHEET_HELP)
    elsewhere: dict[str, list[str]] = {}
    for other, function in all_tasks().items():
        for parameter in parameters(function).keys() - parameters(task).keys():
            elsewhere.setdefault(flag_of(parameter), []).append(other)
    parser.elsewhere = elsewhere
    return parser


def add_parameters(
    parser: Parser,
    task: Task,
    names: Sequence[str] = (),
    *,
    leave_out: Sequence[str] = (),
    defaults: Mapping[str, str] | None = None,
) -> None:
    """Add options for the parameters of a task: all or only `names`, without those in `leave_out`.

    defaults: what the model does where an option is left out, by name, for the help.
    """
    defaults = defaults or {}
    for parameter in parameters(task).values():
        if parameter.name in leave_out or (names and parameter.name not in names):
            continue
        settings = _argparse_settings(parameter, defaults.get(parameter.name))
        if parameter.kind == "loras":
            settings |= {"action": "append"}
        parser.option(parameter.name, short=SHORT_OPTIONS.get(parameter.name, ""), **settings)
        if parameter.name == "width":
            parser.option("size", **size_settings("width and height", defaults.get("size")))


def size_settings(what: str, default: str | None = None) -> dict[str, Any]:
    """The arguments of `Parser.option` for a size."""
    help_text = f"{what}, such as 192x128; 128 is 128x128" + (f" (default: {default})" if default else "")
    return {"type": size_of, "metavar": "WxH", "help": help_text}


def flag_of(name: str) -> str:
    """The option for a parameter."""
    return "--lora" if name == "loras" else f"--{name.replace('_', '-')}"


def request_of(task: Task, words: Mapping[str, Any], options: Mapping[str, Any]) -> Request:
    """The request of a task for its positional parameters, `words`, and the given options.

    Raises `ValueError` for values out of range and for a missing option that the task requires.
    """
    known = parameters(task)
    values = {name: value for name, value in options.items() if name in known} | {**words}
    if "size" in options:
        if "height" in values or "width" in values:
            raise ValueError("--size sets both --height and --width; leave those out")
        values["width"], values["height"] = options["size"]
    for parameter in known.values():
        if parameter.required and parameter.name not in values:
            raise ValueError(f"{task.__name__} needs {flag_of(parameter.name)}: {parameter.help}")
    return task(**values)


def _argparse_settings(parameter: Parameter, default: Any = None) -> dict[str, Any]:
    """The arguments of `add_argument` for a parameter. default: the model's, if the parameter itself has none."""
    parse, metavar = PARSERS[parameter.kind]
    default = parameter.default if isinstance(parameter.default, str | int | float) else default
    default = {True: "yes", False: "no"}[default] if isinstance(default, bool) else default
    help_text = parameter.help + (f" (default: {default})" if default else "")
    settings = {"type": parse, "metavar": metavar, "help": help_text}
    if parameter.choices:
        settings |= {"choices": parameter.choices, "metavar": "|".join(parameter.choices)}
    return settings


def _joined(arguments: Sequence[str]) -> list[str]:
    """The arguments with `--option -1,2` joined to `--option=-1,2`, since argparse would read `-1,2` as an option."""
    joined: list[str] = []
    for word in arguments:
        if NUMBERS.fullmatch(word) and joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def whole_number(text: str) -> int:
    """Parse an integer. Raises `argparse.ArgumentTypeError` for anything else."""
    if not re.fullmatch(r"[+-]?\d+", text):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number")
    if len(text) > MAX_DIGITS:
        raise argparse.ArgumentTypeError(f"{text[:MAX_DIGITS]}... is too large; give a number of fewer digits")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _numbers(text: str) -> list[float]:
    return [_number(part) for part in text.replace(",", " ").split()]


def _boolean(text: str) -> bool:
    if text.lower() not in ("yes", "no"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither yes nor no")
    return text.lower() == "yes"


def size_of(text: str) -> tuple[int, int]:
    """Width and height of a size such as "192x128" or "128". Raises `argparse.ArgumentTypeError` for anything else."""
    sides = re.split(r"\D+", text)
    if re.fullmatch(r"\d+(x\d+)?", text.lower().replace("×", "x")):
        return whole_number(sides[0]), whole_number(sides[-1])
    example = "x".join(sides) if len(sides) == 2 and all(sides) else "192x128"
    raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a size; write width x height, such as {example}")


PARSERS: Mapping[Kind, tuple[Callable[[str], Any], str]] = {
    "text": (str, "TEXT"),
    "string": (str, "NAME"),
    "integer": (whole_number, "N"),
    "number": (_number, "X"),
    "numbers": (_numbers, "X,X,..."),
    "boolean": (_boolean, "yes|no"),
    "picture": (str, "FILE"),
    "loras": (str, "FILE[:SCALE]"),
}
"""For each kind of parameter, the function that parses it and its placeholder in the help."""
