"""The Makefile: prompts are passed on unchanged, a suitable Python is found, and an interrupted install is resumed.

Nothing is installed: the command, or Python itself, is replaced by a script that records its arguments.
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
# of the make that runs these tests
OUTER_MAKE_VARIABLES = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PROMPT", "ARGS", "PYTHON", "TORCH"}
RECORD = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['PROMPT']]))"
PYTHON = """#!/bin/sh
# a fake Python: creates an environment by copying itself, and installs torch by creating a file
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
    env = {name: value for name, value in os.environ.items() if name not in OUTER_MAKE_VARIABLES} | environment
    program = shutil.which("make") or "make"
    return subprocess.run([program, *arguments], cwd=cwd, env=env, capture_output=True, text=True)


@pytest.fixture
def make_run(tmp_path: Path) -> Any:
    """Runs `make run`, and returns the arguments of the command and PROMPT in its environment."""
    script = tmp_path / "record.py"
    script.write_text(RECORD)
    command = f"KANDINSKY22='{sys.executable}' '{script}'"

    def run(*arguments: str, **environment: str) -> Any:
        result = make("run", "-o", ".venv/.installed", command, *arguments, **environment)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return run


@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompt_is_passed_on_unchanged_by_argument_and_environment(make_run: Any, prompt: str) -> None:
    assert make_run(f"PROMPT={prompt}") == [["--", prompt], prompt]
    assert make_run(PROMPT=prompt) == [["--", prompt], prompt]
    assert not (ROOT / "pwned").exists()


def test_empty_prompt_gives_no_argument(make_run: Any) -> None:
    assert make_run() == make_run("PROMPT=") == [[], ""]
    assert make_run("ARGS=--seed 7") == [["--seed", "7"], ""]


def test_options_precede_the_prompt(make_run: Any) -> None:
    assert make_run("PROMPT=a b", "ARGS=--seed 7 --output 'my pictures'")[0] == [
        *["--seed", "7", "--output", "my pictures"],
        *["--", "a b"],
    ]


def test_make_without_target_lists_the_targets() -> None:
    listed = [line.split()[1] for line in make().stdout.splitlines() if line.startswith("make ")]
    assert listed == ["help", "run", "serve", "studio-run", "studio", "test", "check", "docs", "bench", "train-box"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the Makefile, and fakes of all Pythons that it looks for."""
    (tmp_path / "bin").mkdir()
    for name in ("python3.11", "python3.12", "python3.13", "python3.14", "python3", "python"):
        (tmp_path / "bin" / name).write_text(PYTHON)
        (tmp_path / "bin" / name).chmod(0o755)
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    return tmp_path


def install(project: Path, *arguments: str, unfit: str = "", fails_at: str = "nothing") -> tuple[list[str], str]:
    """Runs the install target, and returns the calls of the fake Pythons and the text on stderr."""
    path = f"{project / 'bin'}{os.pathsep}{os.environ['PATH']}"
    result = make(".venv/.installed", *arguments, cwd=project, PATH=path, UNFIT=unfit, BREAK=fails_at)
    assert (result.returncode == 0) == (project / ".venv/.installed").exists(), result.stderr
    calls = project / "calls"
    return calls.read_text().splitlines() if calls.exists() else [], result.stderr


@pytest.mark.parametrize(
    ("unfit", "chosen"),
    [
        ("", "python3.11"),
        ("python3.11 python3.12", "python3.13"),
        ("python3.11 python3.12 python3.13 python3.14", "python3"),
    ],
)
def test_first_suitable_python_is_used(project: Path, unfit: str, chosen: str) -> None:
    calls, _ = install(project, unfit=unfit)
    assert [call for call in calls if "-m venv" in call] == [f"{chosen} -m venv --clear .venv"]


def test_python_given_by_name_is_used(project: Path) -> None:
    calls, _ = install(project, "PYTHON=python3.14")
    assert "python3.14 -m venv --clear .venv" in calls


def test_missing_python_is_reported_in_one_sentence(project: Path) -> None:
    calls, stderr = install(project, unfit="python3.11 python3.12 python3.13 python3.14 python3 python")
    assert "kandinsky22 needs Python 3.11 to 3.14 with venv: install one" in stderr.splitlines()[0]
    assert len(calls) == 6 and not (project / ".venv").exists()


def test_unsuitable_python_given_by_name_is_reported(project: Path) -> None:
    calls, stderr = install(project, "PYTHON=/no/such/python")
    assert ", which /no/such/python is not: install one" in stderr.splitlines()[0]
    assert calls == []


def test_torch_is_installed_first_and_pinned(project: Path) -> None:
    calls, _ = install(project)
    installs = [call.partition("install ")[2] for call in calls if "install " in call]
    assert installs == ["--quiet torch==2.13.0", "--quiet --editable ."]


def test_interrupted_install_is_resumed(project: Path) -> None:
    before, _ = install(project, fails_at="--editable")
    after, _ = install(project)
    resumed = after[len(before) :]
    assert not any("-m venv" in call or "torch==" in call for call in resumed)
    assert resumed[-1].endswith("--editable .")
    assert install(project)[0] == after


def test_environment_uses_an_installed_torch_of_the_right_version(project: Path) -> None:
    """With a real Python: its environment can import the torch of that Python if the version fits, and no other."""
    site = project / "some where"
    (site / "torch").mkdir(parents=True)
    for version, imported in (("2.13.0+vendor", 0), ("2.8.1", 1)):
        (site / "torch" / "__init__.py").write_text(f"__version__ = {version!r}")
        result = make(".venv/bin/python", "-B", f"PYTHON={sys.executable}", cwd=project, PYTHONPATH=str(site))
        assert result.returncode == 0, result.stderr
        command = [str(project / ".venv/bin/python"), "-c", "import torch"]
        assert subprocess.run(command, cwd="/", capture_output=True).returncode == imported
