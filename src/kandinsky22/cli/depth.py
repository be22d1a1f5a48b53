"""`kandinsky22 depth`: estimates the depth of a picture, for controlnet. Needs the extra `depth`."""

from collections.abc import Sequence
from pathlib import Path

from kandinsky22.cli import paint
from kandinsky22.cli.options import Parser
from kandinsky22.cli.show import one_file
from kandinsky22.console import echo
from kandinsky22.files import expand
from kandinsky22.request import Picture

EXAMPLE = """example:
  kandinsky22 depth cat.png -o depth.png
  kandinsky22 controlnet "a robot" --hint depth.png"""


def main(arguments: Sequence[str]) -> None:
    """Estimate the depth of a picture and write it."""
    parser = Parser(
        "kandinsky22 depth",
        "Estimate the depth of a picture, in which near is bright, for --hint of controlnet.",
        usage="kandinsky22 depth [options] FILE",
        epilog=EXAMPLE,
    )
    parser.option("estimator", metavar="NAME", help="a depth-estimation checkpoint or its folder (default: DPT-large)")
    parser.add_edge("device")
    parser.option("output", short="-o", metavar="FILE", help="the .png file to write (default: out/FILE-depth.png)")
    options, words, _ = parser.parse(arguments)
    file = one_file(words, "depth")
    picture = Picture.of(file)

    from kandinsky22.cli.output import save_new_image
    from kandinsky22.engine.device import device_of
    from kandinsky22.imaging.depth import depth
    from kandinsky22.imaging.images import save_image

    output = expand(options.get("output", Path(paint.OUTPUT) / f"{Path(file).stem}-depth.png"))
    device = str(device_of(options.get("device")))
    image = depth(picture, model=options.get("estimator"), device=device).image
    echo(save_image(image, output) if "output" in options else save_new_image(image, output))
