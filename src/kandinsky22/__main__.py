"""`python -m kandinsky22`, and so `torchrun -m kandinsky22`."""

from kandinsky22.cli import main

if __name__ == "__main__":
    main()
