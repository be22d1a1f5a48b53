"""What `backends.remote` needs besides jobs: the other methods of the protocol `Backend`, as part of `/api/v1`."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from kandinsky22.request import Request
from kandinsky22.server.app import Services, who
from kandinsky22.server.store import Key

Asker = Annotated[Key, Depends(who)]


class Asked(BaseModel):
    """A request as pictures store it; its pictures are uploads."""

    request: dict[str, Any]


class EmbeddingView(BaseModel):
    """An embedding: its float32 numbers in base64, the encoder in whose space it is, and what made it."""

    encoder: str
    data: str
    made_by: dict[str, Any]


def router(services: Services, with_uploads: Callable[[Request], Awaitable[Request]]) -> APIRouter:
    """The routes. with_uploads: adds pixels to a request's pictures."""
    routes = APIRouter()

    def read(asked: Asked) -> Request:
        return Request.from_json(json.dumps(asked.request))

    @routes.post("/resolve")
    async def resolve(asked: Asked, _: Asker) -> dict[str, Any]:
        """The request with every open field filled in, as the model would paint it."""
        await services.queue.ready()
        resolved: Request = await asyncio.to_thread(services.resolve, read(asked))
        services.queue.limits.check(resolved)
        return dict(json.loads(resolved.to_json()))

    @routes.post("/describe")
    async def describe(asked: Asked, _: Asker) -> dict[str, Any]:
        """What decides the pixels of a resolved request besides the request: weights, versions, dtype, device."""
        await services.queue.ready()
        return await asyncio.to_thread(services.describe, read(asked))

    @routes.post("/embedding")
    async def embedding(asked: Asked, _: Asker) -> EmbeddingView:
        """The image embedding of a resolved request's first picture."""
        await services.queue.ready()
        made = await asyncio.to_thread(services.embed, await with_uploads(read(asked)))
        return EmbeddingView(**made.to_dict(), made_by=dict(made.made_by))

    return routes
