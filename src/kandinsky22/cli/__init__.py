"""The command line: one command per task, made from the task functions' own signatures. Starts without torch."""

import gc
import sys

OBJECTS = 100_000  # between two looks for what nothing refers to any more


def main() -> None:
    """The `kandinsky22` command."""
    gc.set_threshold(OBJECTS)  # importing torch makes many that stay: a twentieth of a short command's time went there
    from kandinsky22.cli.app import run

    try:
        sys.exit(run(sys.argv[1:]))
    finally:
        gc.freeze()  # to look through all of them on the way out was another sixth
