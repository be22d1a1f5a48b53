"""Pictures a second of the server and of a plain FastAPI program around diffusers: python runs/compare_servers.py

Both paint the box's pictures from the same weights with as many steps, with 1, 4 and 16 clients, in turns. Printed are
medians over the turns of the pictures a second, and p50 and p99 of the seconds of all pictures.
"""

import argparse
import base64
import io
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image
from server_process import SERVE, serving, wait_until

from kandinsky22.checkpoints.locate import part_folders

PATH, PLAIN_PORT = "/v1/images/generations", 8029
CLIENTS = (1, 4, 16)


def paint(url: str, seed: int, steps: int) -> float:
    """The seconds until a picture is here, through OpenAI's interface."""
    start = time.perf_counter()
    body = {"prompt": "a red circle", "size": "128x128", "seed": seed, "response_format": "b64_json"}
    body |= {"num_inference_steps": steps, "prior_num_inference_steps": steps}
    request = urllib.request.Request(url + PATH, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        Image.open(io.BytesIO(base64.b64decode(json.load(answer)["data"][0]["b64_json"]))).load()
    return time.perf_counter() - start


def measure(url: str, clients: int, pictures: int, steps: int) -> tuple[float, list[float]]:
    """Pictures a second, and the seconds of each."""
    with ThreadPoolExecutor(clients) as threads:
        start = time.perf_counter()
        seconds = list(threads.map(lambda seed: paint(url, seed, steps), range(pictures)))
        return pictures / (time.perf_counter() - start), seconds


def plain_program() -> None:
    """Serve diffusers' two pipelines behind one route, one request at a time."""
    import torch
    import uvicorn
    from diffusers import KandinskyV22Pipeline, KandinskyV22PriorPipeline
    from fastapi import Body, FastAPI

    folders = part_folders("box")
    prior = KandinskyV22PriorPipeline.from_pretrained(folders["prior"])
    decoder = KandinskyV22Pipeline.from_pretrained(folders["decoder"])
    for pipeline in (prior, decoder):
        pipeline.set_progress_bar_config(disable=True)
    lock, app = threading.Lock(), FastAPI()

    @app.post(PATH)
    def generate(body: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008  # as FastAPI documents it
        with lock:
            generator = torch.Generator().manual_seed(body["seed"])
            steps = {"num_inference_steps": body["prior_num_inference_steps"], "generator": generator}
            embeds = prior(body["prompt"], guidance_scale=4.0, **steps)
            image = decoder(
                image_embeds=embeds.image_embeds,
                negative_image_embeds=embeds.negative_image_embeds,
                height=128,
                width=128,
                num_inference_steps=body["num_inference_steps"],
                guidance_scale=4.0,
                generator=generator,
            ).images[0]
        file = io.BytesIO()
        image.save(file, "PNG")
        return {"data": [{"b64_json": base64.b64encode(file.getvalue()).decode()}]}

    uvicorn.run(app, port=PLAIN_PORT, log_level="warning")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=32, help="of a turn")
    parser.add_argument("--turns", type=int, default=3, help="of each program")
    parser.add_argument("--steps", type=int, default=10, help="of the prior and of the decoder")
    parser.add_argument("--plain", action="store_true", help="serve the plain program, and measure nothing")
    options = parser.parse_args(arguments)
    if options.plain:
        plain_program()
        return 0
    command = [sys.executable, str(Path(__file__).resolve()), "--plain"]
    with serving(SERVE) as server, subprocess.Popen(command) as plain:
        urls = {"kandinsky22": server.url, "plain diffusers": f"http://127.0.0.1:{PLAIN_PORT}"}
        wait_until(lambda: _is_up(urls["plain diffusers"], options.steps))
        try:
            for clients in CLIENTS:
                rates: dict[str, list[float]] = {name: [] for name in urls}
                seconds: dict[str, list[float]] = {name: [] for name in urls}
                for _ in range(options.turns):
                    for name, url in urls.items():
                        rate, each = measure(url, clients, options.pictures, options.steps)
                        rates[name].append(rate)
                        seconds[name] += each
                for name in urls:
                    ordered = sorted(seconds[name])
                    p50, p99 = (ordered[round(share * (len(ordered) - 1))] for share in (0.5, 0.99))
                    figures = f"{median(rates[name]):.2f} pictures/s, p50 {p50:.2f} s, p99 {p99:.2f} s"
                    print(f"{clients} clients, {name}: {figures}", flush=True)
                ours, theirs = (median(rates[name]) for name in urls)
                print(f"{clients} clients: {ours / theirs:.2f} times as many pictures a second", flush=True)
        finally:
            plain.terminate()
    return 0


def _is_up(url: str, steps: int) -> bool:
    try:
        return paint(url, 0, steps) > 0
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
