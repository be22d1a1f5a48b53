"""Interpolation: one picture from a weighted blend of texts, pictures and saved embeddings.

python examples/interpolate.py ["PROMPT"] [MODEL]
"""

import sys

from kandinsky22 import Embedding, Kandinsky, interpolate, text2img, variations

PROMPT, MODEL = "a large red circle", "box"

prompt, model = sys.argv[1:] + [PROMPT, MODEL][len(sys.argv) - 1 :]
kandinsky = Kandinsky.load(model)

(stars,) = kandinsky(text2img("two blue stars on a pink ground", seed=3))
square = kandinsky.embedding(text2img("a green square", seed=3))
print(square.save("out/square.safetensors"))

# a string is a text; a `Painting`, a `Path`, a PIL image, an array or a tensor is a picture
blend = interpolate([prompt, stars, Embedding.load("out/square.safetensors")], weights=[0.4, 0.4, 0.2], seed=3)
print(kandinsky(blend)[0].save("out/blend.png"))

# one picture and no text: variations of that picture
for picture in kandinsky(variations(image=stars, num_images=2, seed=5)):
    print(picture.save(f"out/variation-{picture.request.seed}.png"))
