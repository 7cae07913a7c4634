"""Routes, and what every request passes through: the token of access, the limits, and errors in one shape."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from launch.serving.http import bodies, chat, completions, generate
from launch.serving.http.errors import ApiError
from launch.serving.http.model import Served
from launch.serving.http.worker import Answers
from trainer.engine.request import Request as EngineRequest

OPEN = ("/health",)  # answered without a token of access
LIKE = {"/v1/completions": "POST", "/v1/chat/completions": "POST", "/generate": "POST", "/abort_request": "POST",
        "/v1/models": "GET"}  # fmt: skip


class Asked(Protocol):
    """A request that was checked, of any kind."""

    @property
    def requests(self) -> Sequence[EngineRequest]: ...

    async def whole(self, answers: Answers) -> dict[str, Any]: ...

    def stream(self, answers: Answers) -> AsyncGenerator[dict[str, Any]]: ...


def build(served: Served, *, key: str | None = None, hosts: tuple[str, ...] = ()) -> ASGIApp:
    """The application. key: a token of access that requests have to bear. hosts: names under which this server may be
    called; by default all."""
    worker = served.worker

    async def models(request: Request) -> Response:
        card = {"id": served.name, "object": "model", "created": served.created, "owned_by": "octavo"}
        card["max_model_len"] = served.context
        card["version"] = served.version
        if "name" not in request.path_params:
            return JSONResponse({"object": "list", "data": [card]})
        served.require(request.path_params["name"])
        return JSONResponse(card)

    async def health(request: Request) -> Response:
        if worker.failure is not None:
            raise ApiError(500, f"the engine failed: {worker.failure}")
        if worker.closing:
            raise ApiError(503, "the server is shutting down")
        return JSONResponse({"status": "ok", "pending": worker.pending})

    def answering(kind: type[Any], ask: Callable[[Served, Any], Asked]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            body = await bodies.read(request, kind, most=served.limits.body)
            asked = await asyncio.to_thread(ask, served, body)  # others are answered while media are read
            session = body.session_id if kind is bodies.Generate and body.session_id != -1 else None
            answers = worker.ask(asked.requests, session, keep=_is_determined(body))
            if body.stream:
                return _Stream(asked, answers, served.limits.seconds)
            return await _whole(request, asked, answers, served.limits.seconds)

        return endpoint

    async def abort(request: Request) -> Response:
        body = await bodies.read(request, bodies.Abort, most=served.limits.body)
        if not body.abort_all and body.session_id in (None, -1):
            raise ApiError(400, "give abort_all=true or a session_id", param="session_id")
        worker.abort(None if body.abort_all else body.session_id)
        return JSONResponse({"status": "ok"})

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        worker.start()
        yield
        await worker.stop()

    routes = [
        Route("/health", health),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", models),
        Route("/v1/completions", answering(bodies.Completion, completions.ask), methods=["POST"]),
        Route("/v1/chat/completions", answering(bodies.Chat, chat.ask), methods=["POST"]),
        Route("/generate", answering(bodies.Generate, generate.ask), methods=["POST"]),
        Route("/abort_request", abort, methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {ApiError: _api_error, HTTPException: _http_error, Exception: _failed}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    return _Gate(app, key, hosts)


def _is_determined(body: bodies.Sampled) -> bool:
    """Return True if all of an answer follows from its request, and all of it can be kept."""
    routes = isinstance(body, bodies.Generate) and body.return_routed_experts
    return (body.seed is not None or body.temperature == 0) and not routes


async def _whole(request: Request, asked: Asked, answers: Answers, seconds: float) -> Response:
    """The whole answer. It is not computed any further once the client has left."""
    answer, gone = asyncio.ensure_future(asked.whole(answers)), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({answer, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return JSONResponse(answer.result())
        if gone.done():
            return Response(status_code=499)  # which no client sees
        raise _too_long(seconds)
    finally:
        answers.cancel()
        answer.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _too_long(seconds: float) -> ApiError:
    text = f"the answer took more than {seconds:g} s; ask for fewer tokens, or start with a longer --time-limit"
    return ApiError(400, text, code="timeout")  # after 408 clients would have it computed again


class _Stream(StreamingResponse):
    """Events as they arrive. The answers are not computed any further after `seconds`, however slowly the client
    reads, nor once it has left, be it before the first event."""

    def __init__(self, asked: Asked, answers: Answers, seconds: float) -> None:
        super().__init__(_events(asked, answers), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._answers, self._seconds = answers, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        late = asyncio.get_running_loop().call_later(self._seconds, self._answers.cancel, _too_long(self._seconds))
        try:
            await super().__call__(scope, receive, send)
        finally:
            late.cancel()
            self._answers.cancel()


async def _events(asked: Asked, answers: Answers) -> AsyncIterator[str]:
    try:
        async with aclosing(asked.stream(answers)) as chunks:
            async for chunk in chunks:
                yield _event(chunk)
        yield "data: [DONE]\n\n"
    except ApiError as error:
        yield _event(error.body)


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'), allow_nan=False)}\n\n"


async def _api_error(request: Request, error: ApiError) -> Response:
    return error.response()


async def _http_error(request: Request, error: HTTPException) -> Response:
    text = error.detail
    if error.status_code == 404:
        text = f"there is no {request.url.path} here; use {', '.join(LIKE)} or /health"
    elif error.status_code == 405:
        text = f"{request.method} does not work for {request.url.path}; use {LIKE.get(request.url.path, 'GET')}"
    return ApiError(error.status_code, text, headers=dict(error.headers or {})).response()


async def _failed(request: Request, error: Exception) -> Response:
    return ApiError(500, f"the server failed: {type(error).__name__}: {error}").response()


class _Gate:
    """Lets requests through that bear the token of access and call this server by one of its names.

    A page in a browser may call this machine by a name of its own, which leads to the loopback address (DNS
    rebinding); the name is checked for that reason.
    """

    def __init__(self, app: ASGIApp, key: str | None, hosts: tuple[str, ...]) -> None:
        self._app, self._hosts = app, hosts
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (fault := self._fault(scope)) is not None:
            await fault.response()(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _fault(self, scope: Scope) -> ApiError | None:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if self._hosts and name not in self._hosts:
            text = f"this server is not called {name!r}; use {' or '.join(self._hosts)}, or start it with --host"
            return ApiError(421, text)
        if self._key is None or scope["path"] in OPEN:
            return None
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._key):
            return None
        text = "the token of access is wrong or missing; send the header Authorization: Bearer TOKEN"
        return ApiError(401, text, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
