"""The rules of the code base, checked on the source: packages and their imports, names, module size, formatting."""

import ast
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kandinsky22.diffusion import SAMPLERS as REGISTERED
from kandinsky22.request.parts import SAMPLERS

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "kandinsky22"
FILES = sorted(SRC.rglob("*.py"))
ALL_FILES = sorted(
    file for folder in ("src", "tests", "benchmarks", "runs", "examples") for file in (ROOT / folder).rglob("*.py")
)

# A room is a package or module directly below kandinsky22; here with the other rooms that it may import.
ENGINE = "request imaging models diffusion checkpoints acceleration engine files console generators threads"
ROOMS = {
    "files": "",
    "arrays": "files",
    "console": "",
    "generators": "",
    "moments": "",
    "threads": "",
    "compositions": "arrays files",
    "request": "files",
    "models": "generators",
    "diffusion": "",
    "acceleration": "models",
    "imaging": "request files",
    "checkpoints": "request models diffusion files console",
    "engine": ENGINE,
    "backends": ENGINE,
    "pipelines": ENGINE,
    "training": f"{ENGINE} backends compositions moments arrays",
    "evaluation": f"{ENGINE} backends compositions moments arrays",
    "server": "request imaging files backends",
    "integrations": ENGINE,
    "notebook": ENGINE,
    "cli": f"{ENGINE} backends compositions",
    "__main__": "cli",
}
WITHIN_A_FUNCTION = {
    ("cli", "training"),
    ("cli", "evaluation"),
    ("cli", "server"),
    ("cli", "integrations"),
}  # a command imports these only when it runs
FOR_TESTS_ONLY = {"diffusers", "transformers", "accelerate", "scipy", "torchmetrics", "torchvision"}
MAY_USE = {"transformers": ("imaging",)}  # the extra `depth`, imported within a function
BANNED_WORD = re.compile(
    "told|said|led|lead|away|untold|heard|hear|held|kept|company|workshop|asides|ahead|renewed|judged|manner|journey|"
    "begun|anew|afresh|dear"
)


class Import(NamedTuple):
    file: Path
    name: str  # dotted, absolute
    within_a_function: bool

    @property
    def room(self) -> str:
        """The room that imports."""
        return self.file.relative_to(SRC).parts[0].removesuffix(".py")

    @property
    def imported(self) -> str | None:
        """The room that is imported, if it is one of ours; kandinsky22 itself is `__init__`."""
        first, *rest = self.name.split(".")
        if first != "kandinsky22":
            return None
        return next((room for room in rest[:1] if room in ROOMS), "__init__")

    def __str__(self) -> str:
        return f"{self.file.relative_to(SRC)} imports {self.name}"


def imports(file: Path) -> Iterator[Import]:
    """Every import in a file, except those that only type checkers see."""
    package = ["kandinsky22", *file.relative_to(SRC).parts[:-1]]

    def walk(node: ast.AST, inside: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            yield from (Import(file, alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = [*above, *filter(None, [node.module])]
            yield from (Import(file, ".".join([*base, alias.name]), inside) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))

    return walk(ast.parse(file.read_text("utf-8")), False)


IMPORTS = [found for file in FILES for found in imports(file)]


def identifiers(file: Path) -> Iterator[str]:
    """The module's name and all names in it: of functions, classes, arguments, variables, attributes and imports.

    Of a C source, every word outside comments and strings.
    """
    yield file.stem
    if file.suffix == ".c":
        source = re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\])*"', " ", file.read_text("utf-8"), flags=re.DOTALL)
        yield from re.findall(r"[A-Za-z_]\w*", source)
        return
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        for field in ("name", "id", "attr", "arg", "asname"):
            name = getattr(node, field, None)
            if isinstance(name, str):
                yield name
        if isinstance(node, ast.Global | ast.Nonlocal):
            yield from node.names


def words(identifier: str) -> list[str]:
    """The words of an identifier in lower case, split at underscores, digits and camel case."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", identifier)]


def comments(file: Path) -> Iterator[tuple[int, str]]:
    """The comments of a file with their line numbers."""
    with file.open("rb") as lines:
        for token in tokenize.tokenize(lines.readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string


def outside(room: str, *, at_once: bool = False) -> set[str]:
    """The third-party libraries that a room imports; `at_once`: only those imported outside of functions."""
    used = [found for found in IMPORTS if found.room == room and not (at_once and found.within_a_function)]
    names = {found.name.partition(".")[0] for found in used}
    return names - sys.stdlib_module_names - {"kandinsky22"}


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_every_room_is_listed() -> None:
    assert {file.relative_to(SRC).parts[0].removesuffix(".py") for file in FILES} == {*ROOMS, "__init__"}


def test_rooms_import_only_what_they_may() -> None:
    """`kandinsky22/__init__.py` may import all, lazily; rooms above the engine may import `kandinsky22.__version__`."""
    wrong = [
        str(found)
        for found in IMPORTS
        if found.room != "__init__"
        and found.imported not in {None, found.room, *ROOMS[found.room].split()}
        and not (found.within_a_function and (found.room, found.imported) in WITHIN_A_FUNCTION)
        and not (found.imported == "__init__" and {"engine", "backends"} & {*ROOMS[found.room].split()})
    ]
    assert wrong == []


def test_leaf_rooms_import_few_libraries() -> None:
    assert outside("compositions") <= {"numpy", "PIL"}
    assert outside("diffusion") <= {"torch"}
    assert outside("request", at_once=True) == set()
    assert outside("request") <= {"numpy", "PIL", "safetensors"}


def test_no_library_of_the_test_extra_is_imported() -> None:
    used = [found for found in IMPORTS if found.name.partition(".")[0] in FOR_TESTS_ONLY]
    assert [str(found) for found in used if found.room not in MAY_USE.get(found.name.partition(".")[0], ())] == []


def test_building_a_request_imports_no_torch() -> None:
    code = "import sys, kandinsky22.request.events, kandinsky22.request.tasks; sys.exit('torch' in sys.modules)"
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_the_server_imports_no_torch() -> None:
    code = "import sys, kandinsky22.cli.serve, kandinsky22.server.dialects; sys.exit('torch' in sys.modules)"
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_a_client_of_a_server_imports_no_torch() -> None:
    code = "import sys, kandinsky22.backends.remote, kandinsky22.cli.output; sys.exit('torch' in sys.modules)"
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_the_help_command_imports_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['kandinsky22', '--help']\n"
        "from kandinsky22.cli import main\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = python(code)
    assert done.returncode == 0 and "kandinsky22" in done.stdout, done.stderr


def test_requests_name_every_sampler() -> None:
    assert sorted(SAMPLERS) == sorted(REGISTERED)


def test_every_module_has_a_docstring() -> None:
    assert [str(file) for file in FILES if not ast.get_docstring(ast.parse(file.read_text("utf-8")))] == []


def test_no_module_is_longer_than_450_lines() -> None:
    assert [str(file) for file in FILES if len(file.read_text("utf-8").splitlines()) > 450] == []


def test_no_module_or_class_has_a_generic_name() -> None:
    assert [str(file) for file in FILES if file.stem in {"util", "utils", "helper", "helpers"}] == []
    classes = [
        node.name
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    assert [name for name in classes if re.search(r"(Manager|Helper|Utils)$|^Base([A-Z]|$)", name)] == []


def test_no_identifier_contains_a_banned_word() -> None:
    """Names use the standard terms of the field (docs/glossary.md). `held_out` is one of them."""
    offenders = {
        f"{file.relative_to(ROOT)}: {identifier}"
        for file in (*ALL_FILES, *SRC.rglob("*.c"))
        for identifier in identifiers(file)
        if any(map(BANNED_WORD.fullmatch, words(re.sub("held_?out", "", identifier, flags=re.IGNORECASE))))
    }
    assert not offenders, f"rename these {len(offenders)} identifiers:\n" + "\n".join(sorted(offenders))


def test_formatter_and_line_length_have_no_exceptions() -> None:
    exceptions = [
        f"{file.relative_to(ROOT)}:{line}: {comment}"
        for file in ALL_FILES
        for line, comment in comments(file)
        if re.search(r"fmt: *(skip|off)|noqa.*E501|noqa *$|yapf", comment)
    ]
    assert exceptions == []
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["ruff"]
    lint = ruff["lint"]
    assert ruff["line-length"] <= 120
    assert not any(rule.startswith("E5") for rule in lint.get("ignore", []))
    assert "E" in lint["select"] and not lint.get("per-file-ignores") and not ruff.get("exclude")
