"""Write a folder of captioned emoji to train on: `python runs/emoji_pictures.py THINGS FOLDER [--drawing flat]`.

THINGS is the folder that `runs/fetch_things.py` writes. FOLDER gets a PNG over white for each concept with a drawing,
and beside it a text file with its names in English and Russian, one a line.
"""

import argparse
import sys
from pathlib import Path

from PIL import Image

from kandinsky22.compositions.things import DRAWINGS, Things


def write(things: Things, drawing: str, folder: Path) -> int:
    """Write the pictures and captions of one set of drawings; returns their number."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [thing for thing in things.things if drawing in thing.rows]
    for thing in drawn:
        picture = Image.fromarray(things.pictures[thing.rows[drawing]], "RGBA")
        white = Image.new("RGBA", picture.size, "white")
        Image.alpha_composite(white, picture).convert("RGB").save(folder / f"{thing.hexcode.lower()}.png")
        names = dict.fromkeys(name.name for name in (*thing.english, *thing.russian))
        (folder / f"{thing.hexcode.lower()}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    return len(drawn)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("things", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--drawing", choices=DRAWINGS, default=DRAWINGS[0])
    args = parser.parse_args()
    try:
        count = write(Things.load(args.things), args.drawing, args.folder)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    sys.stdout.write(f"{count} pictures are in {args.folder}\n")


if __name__ == "__main__":
    main()
