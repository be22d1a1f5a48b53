"""The picture grid of the README: pictures by the model in the box, each with its prompt below it.

python runs/readme_grid.py [--model FOLDER] [--output docs/box.png]
"""

import argparse

from kandinsky22 import Kandinsky, text2img
from kandinsky22.imaging.images import save_image, sheet
from kandinsky22.request.events import Result

PROMPTS = (
    "three red circles over a blue triangle",
    "a large yellow star on a sky blue ground",
    "two purple rings left of an orange half moon",
    "four green crosses on a white background",
    "a black square above two teal triangles",
    "one orange star on a pink ground",
    "two blue half moons below a red ring on cream",
    "three purple squares on a grey ground",
    "a large teal circle on a cream ground",
    "two yellow stars right of a black cross in watercolour",
    "a red half moon on a white ground",
    "two orange circles under a blue star in clay",
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Paint the README's grid.")
    parser.add_argument("--model", default="box")
    parser.add_argument("--output", default="docs/box.png")
    chosen = parser.parse_args()
    kandinsky = Kandinsky.load(chosen.model, device="cpu", dtype="float32")
    requests = {k: text2img(prompt, seed=22) for k, prompt in enumerate(PROMPTS)}
    pictures = {k: event.pictures[0].image for k, event in kandinsky.stream_many(requests) if isinstance(event, Result)}
    print(save_image(sheet([pictures[k] for k in range(len(PROMPTS))], PROMPTS), chosen.output))


if __name__ == "__main__":
    main()
