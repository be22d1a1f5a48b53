"""The rules of the code base, read off the source: rooms and what each may import, vocabulary, module size."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kandinsky22.diffusion import SAMPLERS as REGISTERED
from kandinsky22.request.parts import SAMPLERS

SRC = Path(__file__).parents[1] / "src" / "kandinsky22"
FILES = sorted(SRC.rglob("*.py"))

# A room is a package (or a module) right below kandinsky22; what it may import, itself aside. Edges do not know each other.
ENGINE = "request imaging models diffusion checkpoints acceleration engine files generators"
ROOMS = {
    "files": "",
    "generators": "",
    "moments": "",
    "compositions": "",
    "request": "files",
    "models": "",
    "diffusion": "",
    "acceleration": "models",
    "imaging": "request files",
    "checkpoints": "request models diffusion files",
    "engine": ENGINE,
    "backends": ENGINE,
    "pipelines": ENGINE,
    "training": f"{ENGINE} compositions moments",
    "evaluation": f"{ENGINE} backends compositions moments",
    "cli": f"{ENGINE} backends compositions",
    "__main__": "cli",
}
WITHIN_A_FUNCTION = {("cli", "training"), ("cli", "evaluation")}  # commands import what they start when they run
FOR_TESTS_ONLY = {"diffusers", "transformers", "accelerate", "scipy", "torchmetrics", "torchvision"}
MAY_USE = {"transformers": ("imaging",)}  # depth estimation, an extra, within a function


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


def outside(room: str, *, at_once: bool = False) -> set[str]:
    """The libraries that a room imports, beyond Python's own; `at_once`: as it is imported itself."""
    used = [found for found in IMPORTS if found.room == room and not (at_once and found.within_a_function)]
    names = {found.name.partition(".")[0] for found in used}
    return names - sys.stdlib_module_names - {"kandinsky22"}


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_every_room_is_listed() -> None:
    assert {file.relative_to(SRC).parts[0].removesuffix(".py") for file in FILES} == {*ROOMS, "__init__"}


def test_rooms_import_only_what_they_may() -> None:
    """`kandinsky22/__init__.py` is free: it resolves names lazily. `kandinsky22.__version__` is for all above the engine."""
    wrong = [
        str(found)
        for found in IMPORTS
        if found.room != "__init__"
        and found.imported not in {None, found.room, *ROOMS[found.room].split()}
        and not (found.within_a_function and (found.room, found.imported) in WITHIN_A_FUNCTION)
        and not (found.imported == "__init__" and "engine" in ROOMS[found.room].split())
    ]
    assert wrong == []


def test_leaf_rooms_need_few_libraries() -> None:
    assert outside("compositions") <= {"numpy", "PIL"}
    assert outside("diffusion") <= {"torch"}
    assert outside("request", at_once=True) == set()
    assert outside("request") <= {"numpy", "PIL", "safetensors"}


def test_no_library_of_the_tests_is_needed() -> None:
    used = [found for found in IMPORTS if found.name.partition(".")[0] in FOR_TESTS_ONLY]
    assert [str(found) for found in used if found.room not in MAY_USE.get(found.name.partition(".")[0], ())] == []


def test_making_a_request_imports_no_torch() -> None:
    code = "import sys, kandinsky22.request.events, kandinsky22.request.tasks; sys.exit('torch' in sys.modules)"
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_help_imports_no_torch() -> None:
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


def test_no_name_is_generic() -> None:
    assert [str(file) for file in FILES if file.stem in {"util", "utils", "helper", "helpers"}] == []
    classes = [
        node.name
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    assert [name for name in classes if re.search(r"(Manager|Helper|Utils)$|^Base([A-Z]|$)", name)] == []
