"""Calls a server with real client programs, unmodified: python runs/check_clients.py [--python PYTHON] [--node].

The clients of Python are those that PYTHON (default: this one) has: openai, webuiapi, LiteLLM. With --node, npm fetches
`openai`, `ai` and `@ai-sdk/openai` into a temporary folder. Each client paints, and its picture is read.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from server_process import SERVE, serving

PYTHON = {
    "openai": """
        import openai
        client = openai.OpenAI(base_url=url + "/v1", api_key="any")
        options = {"prompt": "a red circle", "size": "64x64", "quality": "low"}
        first = client.images.generate(**options, n=2, extra_body={"seed": 7}).data[0].b64_json
        picture = base64.b64decode(first)
        client.images.edit(image=("a.png", picture), **options)
        pictures = [("a.png", picture), ("b.png", picture)]
        client.images.edit(image=pictures, prompt="", extra_body={"weights": [0.4, 0.6]})
        *_, last = client.images.generate(**options, stream=True, partial_images=2)
        assert last.type == "image_generation.completed" and client.models.list().data
        read(last.b64_json)
    """,
    "webuiapi": """
        import webuiapi
        api = webuiapi.WebUIApi(host="127.0.0.1", port=int(url.rpartition(":")[2]))
        picture = api.txt2img(prompt="a red circle", seed=7, steps=3, width=64, height=64).image
        assert picture.size == (64, 64) and api.get_samplers() and api.get_sd_models()
        api.img2img(images=[picture], prompt="a star", steps=3, width=64, height=64)
    """,
    "litellm": """
        import litellm
        options = {"model": "openai/kandinsky-2.2", "api_base": url + "/v1", "api_key": "any", "size": "64x64"}
        read(litellm.image_generation(prompt="a red circle", **options).data[0].b64_json)
    """,
}
HEAD = """
import base64, io, sys
from PIL import Image
url = sys.argv[1]
def read(text):
    assert Image.open(io.BytesIO(base64.b64decode(text))).size == (64, 64)
"""
NODE = {
    "openai (Node)": """
        import OpenAI from "openai";
        const client = new OpenAI({ baseURL: url + "/v1", apiKey: "any" });
        const options = { prompt: "a red circle", size: "64x64", model: "gpt-image-1" };
        read((await client.images.generate(options)).data[0].b64_json);
        for await (const event of await client.images.generate({ ...options, stream: true, partial_images: 1 }))
            read(event.b64_json);
    """,
    "Vercel AI SDK": """
        import { generateImage } from "ai";
        import { createOpenAI } from "@ai-sdk/openai";
        const openai = createOpenAI({ baseURL: url + "/v1", apiKey: "any" });
        const { image } = await generateImage({ model: openai.image("gpt-image-1"), prompt: "a star", size: "64x64" });
        read(image.base64);
    """,
}
NODE_HEAD = """
const url = process.argv[2];
function read(text) {
    if (Buffer.from(text, "base64").readUInt32BE(16) !== 64) throw new Error("not a PNG of 64 pixels");
}
"""


def check(name: str, command: Sequence[str], folder: Path) -> bool:
    """Run a client's program, and print how it ended."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    print(f"{name}: {'works' if done.returncode == 0 else done.stderr.strip()[-2000:]}", flush=True)
    return done.returncode == 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every client; returns 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="the Python that has the clients")
    parser.add_argument("--node", action="store_true", help="also the clients of Node, which npm fetches")
    parser.add_argument("--serve", default=" ".join([*SERVE, "--workers", "1"]), help="the command of the server")
    options = parser.parse_args(arguments)
    works = []
    with tempfile.TemporaryDirectory() as name, serving(options.serve.split()) as server:
        folder = Path(name)
        for client, body in PYTHON.items():
            lines = [line.removeprefix("        ") for line in body.splitlines()]
            (folder / "client.py").write_text("\n".join([HEAD, *lines]), encoding="utf-8")
            works.append(check(client, [options.python, "client.py", server.url], folder))
        if options.node:
            packages = ["openai", "ai", "@ai-sdk/openai"]
            subprocess.run(["npm", "install", "--silent", *packages], cwd=folder, check=True)
            for client, body in NODE.items():
                (folder / "client.mjs").write_text(NODE_HEAD + body, encoding="utf-8")
                works.append(check(client, ["node", "client.mjs", server.url], folder))
    return int(not all(works))


if __name__ == "__main__":
    sys.exit(main())
