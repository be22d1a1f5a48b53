"""The documentation of the interface at `/docs`: OpenAPI, and a page of our own that shows it without a CDN."""

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, Response

FOLDER = Path(__file__).with_name("docs")
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request cannot be carried out; the message says what to change"},
    401: {"description": "There is no key, or it is not known"},
    403: {"description": "The host, the origin or the key does not allow this"},
    404: {"description": "There is nothing of this name"},
    409: {"description": "It contradicts an earlier request"},
    413: {"description": "The request is too large"},
    429: {"description": "Too many jobs wait; try again after `retry-after` seconds"},
    503: {"description": "The server cannot do this now; try again after `retry-after` seconds"},
    507: {"description": "There is no space for more pictures"},
}
"""The errors that every route may answer with, in the shape of its dialect."""


def add(app: FastAPI) -> None:
    """Add the page, and leave out of OpenAPI the status 422, which is never sent: bad values are 400 here."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            for path in schema["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI documents it

    @app.get("/docs", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(FOLDER / "index.html", media_type="text/html")

    @app.get("/docs/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        media = {"docs.js": "text/javascript", "docs.css": "text/css"}.get(name)
        return FileResponse(FOLDER / name, media_type=media) if media else Response(status_code=404)
