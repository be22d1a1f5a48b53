"""The web application: middleware, the health of the server, and the dialects' routes."""

import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import kandinsky22
from kandinsky22.request import Embedding
from kandinsky22.server import documentation
from kandinsky22.server.access import Access
from kandinsky22.server.decoding import Decoder
from kandinsky22.server.errors import STATUS, ApiError, Kind, api_error_of
from kandinsky22.server.job_queue import JobQueue
from kandinsky22.server.limits import RefusedError
from kandinsky22.server.metrics import Metrics
from kandinsky22.server.store import Key, Store

logger = logging.getLogger("kandinsky22.server")
MAX_BODY = 64 << 20  # bytes of a request
PROBES = ("/livez", "/readyz", "/metrics")  # routes that programs ask all the time; not in the log
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'",
}


@dataclass(frozen=True, slots=True)
class Services:
    """What the routes of a dialect use. model: the name of the model that paints. embed: the embedding of a resolved
    request's first picture; resolve, describe: as for `Backend`. These three wait for a process. aliases: whether other
    models' names mean this one. switch_model: starts the server again with another model, if it can; it raises
    `ValueError` for a model that is not here."""

    queue: JobQueue
    store: Store
    access: Access
    decoder: Decoder
    metrics: Metrics
    model: str
    embed: Callable[[Any], Embedding]
    resolve: Callable[[Any], Any]
    describe: Callable[[Any], dict[str, Any]]
    aliases: bool = True
    switch_model: Callable[[str], None] | None = None


class Dialect(Protocol):
    """A module of routes to and from `Request`, and the shape of its errors."""

    PREFIX: str
    """What the paths of its routes begin with."""

    def router(self, services: Services) -> APIRouter:
        """Its routes."""
        ...

    def error(self, error: ApiError, request_id: str) -> Any:
        """The JSON body of an error."""
        ...


def create(
    store: Store,
    queue: JobQueue,
    dialects: Sequence[Dialect],
    *,
    model: str,
    embed: Callable[[Any], Embedding],
    resolve: Callable[[Any], Any],
    describe: Callable[[Any], dict[str, Any]],
    hosts: Sequence[str] = (),
    aliases: bool = True,
    switch_model: Callable[[str], None] | None = None,
    close: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The application. close: called when the server has stopped."""
    access, decoder = Access(store, hosts), Decoder()
    services = Services(
        queue, store, access, decoder, Metrics(queue), model, embed, resolve, describe, aliases, switch_model
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await queue.start()
        try:
            yield
        finally:
            await queue.stop()
            decoder.close()
            close()

    app = FastAPI(
        title="kandinsky22", version=kandinsky22.__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.services = services
    for dialect in dialects:
        app.include_router(dialect.router(services), responses=documentation.ERRORS)
    app.include_router(_health(services))
    documentation.add(app)

    def answer(problem: ApiError, request: Request) -> Response:
        dialect = next((d for d in dialects if request.url.path.startswith(d.PREFIX)), dialects[0])
        request_id = request.scope.get("request_id", "")
        headers = {"x-should-retry": "true" if problem.retry_after is not None else "false"}
        if problem.retry_after is not None:
            headers["retry-after"] = str(max(1, round(problem.retry_after)))
        if problem.kind == "unauthorized":
            headers["www-authenticate"] = "Bearer"
        return JSONResponse(dialect.error(problem, request_id), problem.status, headers)

    async def on_error(request: Request, error: Exception) -> Response:
        problem = api_error_of(error)
        if problem.kind == "internal":
            logger.error("failed", exc_info=error, extra={"values": {"id": request.scope.get("request_id")}})
        return answer(problem, request)

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path", "header"))
        return answer(ApiError("invalid", f"{place or 'the request'}: {first['msg']}", place or None), request)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        kinds: dict[int, Kind] = {status: kind for kind, status in STATUS.items()}
        problem = ApiError(kinds.get(error.status_code, "invalid"), str(error.detail))
        response = answer(problem, request)
        response.status_code = error.status_code
        return response

    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, on_error)
    expected = (ApiError, RefusedError, ValueError, RuntimeError, MemoryError, FloatingPointError, OSError)
    for kind in (*expected, SQLAlchemyError):
        app.add_exception_handler(kind, on_error)
    app.add_middleware(_Gate, services=services, answer=answer)
    return app


def who(request: Request) -> Key:
    """FastAPI dependency: the key of a request. Raises `ApiError`."""
    services: Services = request.app.state.services
    return services.access.who(request.headers)


class _Gate:
    """Every request passes here: its id, host and origin, the size of its body, headers of the answer, figures, log."""

    def __init__(self, app: ASGIApp, services: Services, answer: Callable[[ApiError, Request], Response]) -> None:
        self.app, self.services, self.answer = app, services, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["request_id"] = secrets.token_hex(8)
        request, start, status, received = Request(scope), time.perf_counter(), 500, 0
        too_large = ApiError("too large", f"the request is larger than {MAX_BODY >> 20} MB")

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY:  # a body without a length, in chunks
                raise too_large
            return message

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message["headers"] = list(message.get("headers", ()))
                present = {name.lower() for name, _ in headers}
                for name, value in (HEADERS | {"x-request-id": scope["request_id"]}).items():
                    if name.encode() not in present:
                        headers.append((name.encode(), value.encode()))
            await send(message)

        async def unless_too_large(message: Message) -> None:
            if received <= MAX_BODY:
                await sending(message)

        try:
            try:
                self.services.access.check_host(request.headers)
                length = request.headers.get("content-length", "0")
                if not length.isdecimal() or int(length) > MAX_BODY:
                    raise too_large
            except ApiError as problem:
                await self.answer(problem, request)(scope, receive, sending)
            else:
                await self.app(scope, limited, unless_too_large)
                if received > MAX_BODY:  # whatever the routes made of it
                    await self.answer(too_large, request)(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.services.metrics.requests.labels(route, str(status)).inc()
            seconds = time.perf_counter() - start
            values = {"id": scope["request_id"], "method": scope["method"], "route": route, "status": status}
            values |= {"seconds": round(seconds, 3), "bytes": received}
            level = logging.DEBUG if route in PROBES else logging.INFO
            logger.log(level, "request", extra={"values": values})


def _health(services: Services) -> APIRouter:
    routes = APIRouter(include_in_schema=False)

    @routes.get("/livez")
    async def livez() -> Response:
        return PlainTextResponse("ok")

    @routes.get("/readyz")
    async def readyz() -> Response:
        if services.queue.problem is not None:
            return PlainTextResponse(f"the model cannot be loaded: {services.queue.problem}", 503)
        if services.queue.defaults is None:
            return PlainTextResponse("the model is loading", 503, {"retry-after": "2"})
        return PlainTextResponse("ok")

    @routes.get("/metrics")
    async def metrics(request: Request) -> Response:
        services.access.who(request.headers, "metrics")
        return Response(services.metrics.text(), media_type="text/plain; version=0.0.4")

    return routes
