"""Importing the package has no side effects: the environment and torch's settings stay, and no tensor is allocated."""

import os
import subprocess
import sys
from pathlib import Path

from kandinsky22.acceleration.flags import ENV_VARIABLE, HUGE_PAGES

IMPORT_EVERYTHING = """
import os, pkgutil, importlib, ray, torch  # these first: what they set themselves is not counted
before = dict(os.environ)
import kandinsky22
for module in pkgutil.walk_packages(kandinsky22.__path__, "kandinsky22."):
    if not module.name.endswith("__main__") and "_kernels" not in module.name and "kernels-" not in module.name:
        importlib.import_module(module.name)
changed = {name for name in before.keys() | os.environ.keys() if before.get(name) != os.environ.get(name)}
assert not changed, changed
"""
SUPPORTED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def run(code: str) -> str:
    """What a fresh process prints."""
    environment = {name: value for name, value in os.environ.items() if name not in (HUGE_PAGES, ENV_VARIABLE)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_every_module_changes_no_environment_variable_and_no_setting_of_torch() -> None:
    state = "torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), torch.initial_seed(), "
    state += "torch.random.get_rng_state().tolist()"
    run(f"import torch\nstate = {state}\n{IMPORT_EVERYTHING}\nassert ({state}) == state")


def test_huge_pages_can_still_be_requested_after_importing_every_module() -> None:
    """torch reads the variable at its first allocation, so that no module may make a tensor when it is imported."""
    code = """
from kandinsky22.acceleration import request_huge_pages
request_huge_pages()
x = torch.ones(1 << 24)
with open("/proc/self/smaps_rollup") as rollup:
    print(next(line.split()[1] for line in rollup if line.startswith("AnonHugePages")))
"""
    if SUPPORTED.exists() and "[madvise]" in SUPPORTED.read_text():
        assert int(run(IMPORT_EVERYTHING + code)) > 0


def test_completing_the_public_names_reads_none_of_them() -> None:
    code = """
import sys, rlcompleter, kandinsky22
complete = rlcompleter.Completer({"kandinsky22": kandinsky22}).complete
names = []
while (name := complete("kandinsky22.", len(names))):
    names.append(name.removeprefix("kandinsky22.").rstrip("("))
assert {name for name in names if name[0] != "_"} == set(kandinsky22.__all__), names
assert not {"torch", "numpy", "PIL"} & sys.modules.keys()
"""
    run(code)
