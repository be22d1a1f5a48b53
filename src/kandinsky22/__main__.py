"""Runs the command line for `python -m kandinsky22` and `torchrun -m kandinsky22`."""

from kandinsky22.cli.app import main

if __name__ == "__main__":
    main()
