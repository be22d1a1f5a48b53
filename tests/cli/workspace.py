"""What the tests on a small random model share; the fixture `workspace` is in conftest.py."""

from PIL import Image

from kandinsky22.cli.app import run

FEW_PRIOR_STEPS = ["--seed", "3", "--prior-num-inference-steps", "2"]
FEW_STEPS = [*FEW_PRIOR_STEPS, "--steps", "2"]


def succeed(*arguments: str) -> None:
    """Run a command on the small model of the workspace, which must succeed."""
    assert run([*arguments, "--model", "tiny-model"]) == 0


def size(path: str) -> tuple[int, int]:
    """Width and height of a picture file."""
    with Image.open(path) as image:
        return image.size
