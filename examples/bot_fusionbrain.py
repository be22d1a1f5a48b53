"""A chat bot that paints over FusionBrain's interface, with standard input and output as the chat.

kandinsky22 serve &
python examples/bot_fusionbrain.py [http://127.0.0.1:8022] [KEY]

Each line is a message: a prompt, or "a prompt | what to avoid". Messages are answered while others are painted. For a
real chat, replace `messages` by its long poll for updates, and `send` by its call to send text and a picture.
"""

import asyncio
import base64
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

URL, KEY = "http://127.0.0.1:8022", "any"
API = "/key/api/v1"
EVERY = 0.5  # seconds between two questions for the status of a picture


async def messages() -> AsyncIterator[tuple[int, str]]:
    """The messages with their numbers, as they come."""
    number = 0
    while line := await asyncio.to_thread(sys.stdin.readline):
        number += 1
        yield number, line.strip()


def send(number: int, text: str, picture: bytes | None = None) -> None:
    """Answer a message."""
    if picture is not None:
        path = Path("out") / f"message-{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture)
        text = f"{text}: {path}"
    print(f"{number}: {text}", flush=True)


async def answer(client: httpx.AsyncClient, pipeline: str, number: int, message: str) -> None:
    """Paint the prompt of a message and send the picture, or what went wrong."""
    prompt, _, avoid = (part.strip() for part in message.partition("|"))
    try:
        send(number, "here it is", await paint(client, pipeline, prompt, avoid))
    except httpx.HTTPStatusError as error:  # such as too many jobs, or a prompt that is too long
        send(number, f"not painted: {error.response.json().get('message', error)}")
    except (httpx.TransportError, ValueError) as error:
        send(number, f"not painted: {error}")


async def paint(client: httpx.AsyncClient, pipeline: str, prompt: str, avoid: str) -> bytes:
    """The file of a picture. Raises `ValueError` where there is none, and httpx's errors."""
    params = {"type": "GENERATE", "numImages": 1, "generateParams": {"query": prompt}, "negativePromptDecoder": avoid}
    form = {"pipeline_id": (None, pipeline), "params": (None, json.dumps(params), "application/json")}
    job = await ask(client, "POST", "/pipeline/run", files=form)
    while True:
        job = await ask(client, "GET", f"/pipeline/status/{job['uuid']}")
        if job["status"] == "FAIL":
            raise ValueError(job["errorDescription"])
        if job["status"] == "DONE":
            if job["result"]["censored"]:
                raise ValueError("the picture is withheld")
            return base64.b64decode(job["result"]["files"][0])
        await asyncio.sleep(EVERY)


async def ask(client: httpx.AsyncClient, method: str, path: str, **content: Any) -> Any:
    """The JSON answer to a call. Raises `httpx.HTTPStatusError` for a refusal."""
    return (await client.request(method, API + path, **content)).raise_for_status().json()


async def main(url: str = URL, key: str = KEY) -> None:
    """Answer messages until there are no more."""
    headers = {"X-Key": f"Key {key}", "X-Secret": f"Secret {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client, asyncio.TaskGroup() as answers:
        (pipeline,) = await ask(client, "GET", "/pipelines")
        async for number, message in messages():
            answers.create_task(answer(client, pipeline["id"], number, message))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
