"""Depth-conditioned image to image: the prior and the decoder also start from the picture, so more of it is preserved.

python examples/controlnet_image_to_image.py ["PROMPT"] [MODEL]
"""

import sys

import numpy as np

from kandinsky22 import Kandinsky, controlnet
from kandinsky22.compositions import layers, render, sample

PROMPT, MODEL = "three yellow squares", "box"

prompt, model = sys.argv[1:] + [PROMPT, MODEL][len(sys.argv) - 1 :]
kandinsky = Kandinsky.load(model)
scene = sample(np.random.default_rng(4))
source, hint = render(scene, 128), layers(scene, 128).depth
request = controlnet(prompt, hint=hint, image=source, strength=0.5, prior_strength=0.85, seed=43)
(picture,) = kandinsky(request)
print(picture.save("out/controlnet-img2img.png"))
