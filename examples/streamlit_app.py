"""A page made with Streamlit: a prompt becomes a picture, with a bar while it is painted.

streamlit run examples/streamlit_app.py
"""

import streamlit

from kandinsky22 import Kandinsky
from kandinsky22.request.events import Progress, Result

load = streamlit.cache_resource(Kandinsky.load)

streamlit.title("Kandinsky 2.2")
prompt = streamlit.text_input("Prompt", "three red circles over a blue triangle")
seed = streamlit.number_input("Seed", value=7, min_value=0)
if streamlit.button("Paint"):
    bar = streamlit.progress(0.0)
    for event in load("box").stream(prompt, seed=int(seed)):
        match event:
            case Progress(stage, i, n):
                bar.progress(i / n, stage)
            case Result(pictures):
                bar.empty()
                streamlit.image(pictures[0].image, caption=f"seed {pictures[0].request.seed}")
                streamlit.download_button("Save", pictures[0].to_png(), "picture.png", "image/png")
