"""The command line: one command per task, built from the signatures of the task functions. Starts without torch."""

from kandinsky22.cli.app import main

__all__ = ["main"]
