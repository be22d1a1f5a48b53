"""The rules of the house, read off the source: who may know whom, what may be imported, how long and how named."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kandinsky22.diffusion import SAMPLERS as REGISTERED
from kandinsky22.request import SAMPLERS

SRC = Path(__file__).parents[1] / "src" / "kandinsky22"
FILES = sorted(SRC.rglob("*.py"))
PARTS = {file.relative_to(SRC).parts[0].removesuffix(".py") for file in FILES}

# Which parts may know which; a part is a module or a package right below kandinsky22. A new one gets its place here.
VALUES = "request columns speeds events embedding picture"
MATH = "models diffusion"
STAGES = f"{MATH} checkpoints denoise placement"
ENGINE = (
    f"{VALUES} {STAGES} tasks images files words sizes forms masks frame memory conditions stages journey kept machine "
    "acceleration depth_estimation kandinsky __init__"
)
PLACES = [
    ("models diffusion compositions picture masks sizes words files moments studio", ""),
    ("embedding", "files"),
    ("columns", "picture embedding"),
    ("speeds", "columns"),
    ("request", "picture embedding sizes columns speeds"),
    ("events", "request images"),
    ("tasks", f"{VALUES} sizes"),
    ("forms", f"{VALUES} tasks"),
    ("images", f"{VALUES} files"),
    ("frame", "request masks sizes"),
    ("journey", VALUES),
    ("denoise memory", MATH),
    ("checkpoints", f"{MATH} request files"),
    ("placement", f"{MATH} checkpoints acceleration"),
    ("acceleration", "models"),
    ("stages", STAGES),
    ("machine", "memory placement acceleration"),
    ("kept", "files"),
    ("conditions", f"{VALUES} {STAGES} stages kept"),
    ("depth_estimation", "picture"),
    ("kandinsky backends", ENGINE),
    ("cost", f"{MATH} sizes"),
    ("pipelines", f"{STAGES} stages frame"),
    ("__main__", "cli"),
    ("cli server evaluation training", f"{ENGINE} cost backends compositions moments"),
]
MAY_KNOW = {part: set(known.split()) for parts, known in PLACES for part in parts.split()}
WITHIN_A_FUNCTION = {("cli", "training"), ("cli", "evaluation")}  # the edge that starts others
FOR_TESTS_ONLY = {"diffusers", "transformers", "accelerate", "scipy", "torchmetrics", "torchvision"}

MAY_USE = {"transformers": ("depth_estimation",)}  # an extra there, within a function


class Import(NamedTuple):
    file: Path
    name: str  # dotted, absolute
    within_a_function: bool

    @property
    def part(self) -> str:
        """The part of ours that imports."""
        return self.file.relative_to(SRC).parts[0].removesuffix(".py")

    @property
    def known(self) -> str | None:
        """The part of ours that is imported, if it is one; kandinsky22 itself is `__init__`."""
        first, *rest = self.name.split(".")
        if first != "kandinsky22":
            return None
        return next((part for part in rest[:1] if part in PARTS), "__init__")

    def __str__(self) -> str:
        return f"{self.file.relative_to(SRC)} imports {self.name}"


def imports(file: Path) -> Iterator[Import]:
    """Every import in a file, but for those that only type checkers see."""
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


def outside(part: str, *, at_once: bool = False) -> set[str]:
    """The libraries that a part imports, beyond Python's own; `at_once`: as it is imported itself."""
    used = [found for found in IMPORTS if found.part == part and not (at_once and found.within_a_function)]
    names = {found.name.partition(".")[0] for found in used}
    return names - sys.stdlib_module_names - {"kandinsky22"}


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_every_part_has_its_place() -> None:
    assert MAY_KNOW.keys() >= PARTS - {"__init__"}


def test_imports_go_one_way() -> None:
    """`__init__` is free: it is the front door, and lazy."""
    wrong = [
        str(found)
        for found in IMPORTS
        if found.part != "__init__"
        and found.known not in {None, found.part, *MAY_KNOW.get(found.part, set())}
        and not (found.within_a_function and (found.part, found.known) in WITHIN_A_FUNCTION)
    ]
    assert wrong == []


def test_leaves_need_little() -> None:
    assert outside("compositions") <= {"numpy", "PIL"}
    assert outside("diffusion") <= {"torch"}
    assert set().union(*(outside(part, at_once=True) for part in [*VALUES.split(), "tasks", "words", "forms"])) == set()
    assert set().union(*map(outside, VALUES.split())) <= {"numpy", "PIL", "safetensors"}


def test_no_library_of_the_tests_is_needed() -> None:
    used = [found for found in IMPORTS if found.name.partition(".")[0] in FOR_TESTS_ONLY]
    assert [str(found) for found in used if found.part not in MAY_USE.get(found.name.partition(".")[0], ())] == []


def test_asking_imports_no_torch() -> None:
    done = python("import sys, kandinsky22, kandinsky22.events, kandinsky22.tasks; sys.exit('torch' in sys.modules)")
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


def test_every_module_says_what_it_is_for() -> None:
    assert [str(file) for file in FILES if not ast.get_docstring(ast.parse(file.read_text("utf-8")))] == []


def test_every_file_can_be_read_in_a_sitting() -> None:
    assert [str(file) for file in FILES if len(file.read_text("utf-8").splitlines()) > 450] == []


def test_names_say_something() -> None:
    assert [str(file) for file in FILES if file.stem in {"util", "utils", "helper", "helpers"}] == []
    classes = [
        node.name
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    assert [name for name in classes if re.search(r"(Manager|Helper|Utils)$|^Base([A-Z]|$)", name)] == []
