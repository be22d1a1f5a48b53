"""Text to image: four pictures of a prompt, with the model in the box or with weights in a folder.

python examples/text_to_image.py ["PROMPT"] [MODEL FOLDER]
"""

import sys

from kandinsky22 import Kandinsky

PROMPT, MODEL = "three red circles over a blue triangle", "box"

prompt, model = sys.argv[1:] + [PROMPT, MODEL][len(sys.argv) - 1 :]
kandinsky = Kandinsky.load(model)
for picture in kandinsky(prompt, num_images=4, seed=7):
    print(picture.save(f"out/example-{picture.request.seed}.png"))
