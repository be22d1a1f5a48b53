"""Compiles the kernels beside their source when the package is built, once for each instruction set.

An ordinary install, also an editable one, runs this; by hand it is `python hatch_build.py`. Without a C compiler, or on
another processor, nothing is built, the install succeeds, and plain torch computes the same numbers.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zlib
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path(__file__).parent / "src" / "kandinsky22" / "acceleration" / "kernels.c"
INSTRUCTION_SETS = {
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
    "avx2": ["-mavx2", "-mfma"],
}
"""Compiler options by instruction set, as kernels.py names them in file names, with a checksum of the source."""
OPTIONS = ["-O3", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-shared", "-fopenmp", "-Wno-psabi"]


def compile_kernels(source: Path = SOURCE) -> list[Path]:
    """Build the kernels beside `source`; returns the libraries, and prints why where there are none."""
    for outdated in source.parent.glob("kernels-*.so"):
        outdated.unlink()
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return []
    compilers = [
        command for command in (os.environ.get("CC", ""), "cc", "gcc", "clang") if command and _is_installed(command)
    ]
    if not compilers:
        print("kandinsky22: no C compiler was found; plain torch will run, more slowly", file=sys.stderr)
        return []
    libraries = []
    for name, options in INSTRUCTION_SETS.items():
        library = source.with_name(f"kernels-{name}-{zlib.crc32(source.read_bytes()):08x}.so")
        partial = library.with_suffix(f".{os.getpid()}")  # renamed only when it is complete
        command = [*shlex.split(compilers[0]), *OPTIONS, *options, str(source), "-o", str(partial), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            libraries.append(partial.replace(library))
        else:
            partial.unlink(missing_ok=True)
            print(f"kandinsky22: {library.name} was not built: {done.stderr.strip()}", file=sys.stderr)
    return libraries


def _is_installed(command: str) -> bool:
    return shutil.which(shlex.split(command)[0]) is not None


class CustomBuildHook(BuildHookInterface[Any]):
    """Called by hatchling before it collects the files."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the kernels; a wheel that contains them is for this platform alone."""
        if self.target_name == "wheel" and compile_kernels() and version != "editable":
            build_data["pure_python"] = False
            build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")


if __name__ == "__main__":
    for path in compile_kernels():
        print(path)
