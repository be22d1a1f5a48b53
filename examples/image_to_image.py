"""Image to image: repaint a picture after a prompt; the lower the strength, the more of it is preserved.

python examples/image_to_image.py ["PROMPT"] [MODEL]
"""

import sys

from kandinsky22 import Kandinsky, img2img, text2img

PROMPT, MODEL = "three yellow stars on a grey ground", "box"

prompt, model = sys.argv[1:] + [PROMPT, MODEL][len(sys.argv) - 1 :]
kandinsky = Kandinsky.load(model)
(sketch,) = kandinsky(text2img("three red circles on a cream ground", seed=7))
print(sketch.save("out/img2img-sketch.png"))
for strength in (0.4, 0.6, 0.9):
    (picture,) = kandinsky(img2img(prompt, image=sketch, strength=strength, seed=7))
    print(picture.save(f"out/img2img-{strength}.png"))
