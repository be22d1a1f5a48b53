"""Depth-conditioned text to image.

Here the depth is exact: it comes from the program that draws the scene. For a photograph, estimate it with
`kandinsky22.depth("cat.png")` (install the extra `depth`), or pass a depth picture that you have.

python examples/controlnet_text_to_image.py ["PROMPT"] [MODEL]
"""

import sys

import numpy as np

from kandinsky22 import Kandinsky, controlnet
from kandinsky22.compositions import layers, sample

PROMPT, MODEL = "two blue stars above a red circle", "box"

prompt, model = sys.argv[1:] + [PROMPT, MODEL][len(sys.argv) - 1 :]
kandinsky = Kandinsky.load(model)
hint = layers(sample(np.random.default_rng(4)), 128).depth
(picture,) = kandinsky(controlnet(prompt, hint=hint, seed=43))
print(picture.save("out/controlnet.png"))
