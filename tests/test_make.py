"""The Makefile: a prompt survives make and the shell, the right Python is found, an interrupted install goes on.

Nothing is installed here: the command, or Python itself, is a stand-in that writes down how it was called.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PROMPTS = [
    """it's $5 "red" #1""",
    "$(shell touch pwned) ${HOME} $$ $@ $x `id` $(id)",
    'back\\slash \\n \\"quoted\\" \\$5 at the end \\',
    "100% of #2; a | b & c > d < e * ? [f] ~ !g {h,i}",
    "PROMPT=x y:=z +=",
    "--help",
    "-",
    "show",
    "три красных круга над синим треугольником, 画",
    "two  spaces,\ta tab",
]
OF_THE_OUTER_MAKE = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PROMPT", "ARGS", "PYTHON", "TORCH"}  # which runs these tests
RECORD = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['PROMPT']]))"
PYTHON = """#!/bin/sh
# a Python in name only: makes an environment by copying itself, installs torch by making a file
name=${0##*/}
echo "$name $*" >> calls
case "$*" in
    *"import sys, venv"*) case " $UNFIT " in *" $name "*) exit 1 ;; esac ;;
    *"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *"import torch"*) [ "$name" = python ] && [ -f .venv/torch ] ;;
    *"install"*"$BREAK"*) exit 1 ;;
    *"install"*torch==*) touch .venv/torch ;;
esac
"""


def make(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name not in OF_THE_OUTER_MAKE} | environment
    program = shutil.which("make") or "make"
    return subprocess.run([program, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture
def heard(tmp_path: Path) -> Any:
    """`make run`, as (arguments of the command, PROMPT in its environment)."""
    script = tmp_path / "record.py"
    script.write_text(RECORD)
    stand_in = f"KANDINSKY22='{sys.executable}' '{script}'"

    def run(*arguments: str, **environment: str) -> Any:
        done = make("run", "-o", ".venv/.installed", stand_in, *arguments, **environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_survives_whichever_way_it_comes(heard: Any, prompt: str) -> None:
    assert heard(f"PROMPT={prompt}") == [["--", prompt], prompt]
    assert heard(PROMPT=prompt) == [["--", prompt], prompt]
    assert not (ROOT / "pwned").exists()


def test_no_prompt_is_no_argument(heard: Any) -> None:
    assert heard() == heard("PROMPT=") == [[], ""]
    assert heard("ARGS=--seed 7") == [["--seed", "7"], ""]


def test_options_come_before_the_prompt(heard: Any) -> None:
    assert heard("PROMPT=a b", "ARGS=--seed 7 --output 'my pictures'")[0] == [
        *["--seed", "7", "--output", "my pictures"],
        *["--", "a b"],
    ]


def test_make_alone_lists_the_targets() -> None:
    listed = [line.split()[1] for line in make().stdout.splitlines() if line.startswith("make ")]
    assert listed == ["help", "run", "test", "check", "bench", "train-box"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with our Makefile, and stand-ins for every Python that it may look for."""
    (tmp_path / "bin").mkdir()
    for name in ("python3.11", "python3.12", "python3.13", "python3.14", "python3", "python"):
        (tmp_path / "bin" / name).write_text(PYTHON)
        (tmp_path / "bin" / name).chmod(0o755)
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    return tmp_path


def install(project: Path, *arguments: str, unfit: str = "", fails_at: str = "nothing") -> tuple[list[str], str]:
    """Makes the stamp: how the Pythons were called, and what was said on stderr."""
    path = f"{project / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = make(".venv/.installed", *arguments, cwd=project, PATH=path, UNFIT=unfit, BREAK=fails_at)
    assert (done.returncode == 0) == (project / ".venv/.installed").exists(), done.stderr
    calls = project / "calls"
    return calls.read_text().splitlines() if calls.exists() else [], done.stderr


@pytest.mark.parametrize(
    ("unfit", "chosen"),
    [
        ("", "python3.11"),
        ("python3.11 python3.12", "python3.13"),
        ("python3.11 python3.12 python3.13 python3.14", "python3"),
    ],
)
def test_the_first_python_that_fits_is_taken(project: Path, unfit: str, chosen: str) -> None:
    calls, _ = install(project, unfit=unfit)
    assert [call for call in calls if "-m venv" in call] == [f"{chosen} -m venv --clear .venv"]


def test_a_python_that_is_named_is_taken(project: Path) -> None:
    calls, _ = install(project, "PYTHON=python3.14")
    assert "python3.14 -m venv --clear .venv" in calls


def test_no_python_is_one_sentence(project: Path) -> None:
    calls, said = install(project, unfit="python3.11 python3.12 python3.13 python3.14 python3 python")
    assert "kandinsky22 needs Python 3.11 to 3.14 with venv: install one" in said.splitlines()[0]
    assert len(calls) == 6 and not (project / ".venv").exists()


def test_a_named_python_that_does_not_fit_is_named_back(project: Path) -> None:
    calls, said = install(project, "PYTHON=/no/such/python")
    assert ", which /no/such/python is not: install one" in said.splitlines()[0]
    assert calls == []


def test_torch_comes_first_and_pinned(project: Path) -> None:
    calls, _ = install(project)
    installs = [call.partition("install ")[2] for call in calls if "install " in call]
    assert installs == ["--quiet torch==2.13.0", "--quiet --editable ."]


def test_an_interrupted_install_goes_on(project: Path) -> None:
    before, _ = install(project, fails_at="--editable")
    after, _ = install(project)
    went_on = after[len(before) :]
    assert not any("-m venv" in call or "torch==" in call for call in went_on)
    assert went_on[-1].endswith("--editable .")
    assert install(project)[0] == after


def test_a_torch_that_is_there_is_lent(project: Path) -> None:
    """For real: the environment of a Python that can import torch can import it too, and no other torch."""
    lender = project / "some where"
    (lender / "torch").mkdir(parents=True)
    for version, imported in (("2.13.0+vendor", 0), ("2.8.1", 1)):
        (lender / "torch" / "__init__.py").write_text(f"__version__ = {version!r}")
        done = make(".venv/bin/python", "-B", f"PYTHON={sys.executable}", cwd=project, PYTHONPATH=str(lender))
        assert done.returncode == 0, done.stderr
        command = [str(project / ".venv/bin/python"), "-c", "import torch"]
        assert subprocess.run(command, cwd="/", capture_output=True).returncode == imported
