"""The command line: one command per task, made from the task functions' own signatures. Starts without torch."""

import sys


def main() -> None:
    """The `kandinsky22` command."""
    from kandinsky22.cli.app import run

    sys.exit(run(sys.argv[1:]))
