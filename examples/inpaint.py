"""Inpainting: the white region of the mask is repainted, all other pixels stay identical; and outpainting.

python examples/inpaint.py ["PROMPT"] [MODEL]
"""

import sys

import numpy as np

from kandinsky22 import Kandinsky, inpaint, outpaint
from kandinsky22.compositions import render, sample

PROMPT, MODEL = "a red star", "box"

prompt, model = sys.argv[1:] + [PROMPT, MODEL][len(sys.argv) - 1 :]
kandinsky = Kandinsky.load(model)
picture = render(sample(np.random.default_rng(4)), 128)
mask = np.zeros((128, 128), np.float32)
mask[16:80, 40:110] = 1

(hat,) = kandinsky(inpaint(prompt, image=picture, mask_image=mask, feather=4, seed=7))
print(hat.save("out/inpainted.png"))
assert (np.asarray(hat.image)[mask == 0] == picture[mask == 0]).all()

(wider,) = kandinsky(outpaint(prompt, image=picture, left=32, right=32, seed=7))
print(wider.save("out/outpainted.png"))
