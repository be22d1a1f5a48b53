"""The studio: the browser app at `/`, and the parts of `/api/v1` that it needs besides jobs."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response

import kandinsky22
from kandinsky22.server.app import Services
from kandinsky22.server.dialects import library, live, native, system
from kandinsky22.server.errors import ApiError

PREFIX = native.PREFIX
FOLDER = Path(kandinsky22.__file__).parent / "studio" / "built"
MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".png": "image/png"}
FOREVER = {"cache-control": "public, max-age=31536000, immutable"}  # the name of a file changes with its content


def router(services: Services) -> APIRouter:
    """The routes."""
    routes = APIRouter()
    api = APIRouter(prefix=PREFIX, tags=["kandinsky22"])
    for module in (live, library, system):
        api.include_router(module.router(services))
    routes.include_router(api)

    @routes.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(FOLDER / "index.html", media_type="text/html", headers={"cache-control": "no-cache"})

    @routes.get("/assets/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        path = FOLDER / "assets" / Path(name).name
        if path.suffix not in MEDIA_TYPES or not path.is_file():
            raise ApiError("not found", "there is no such file")
        return FileResponse(path, media_type=MEDIA_TYPES[path.suffix], headers=FOREVER)

    return routes


def error(problem: ApiError, request_id: str) -> Any:
    """The JSON body of an error."""
    return native.error(problem, request_id)
