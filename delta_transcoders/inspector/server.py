"""The inspector's page and what it asks for. Made for one machine's own browser, and closed to other pages.

Foreign pages can neither read nor ask: Host and Origin must be the server's own, requests JSON, and no header
allows another origin. Nothing that a client sends is a path. One worker thread runs the models, so that
requests are answered one after the other; a client that is gone is left at the next token. Whoever is on the
machine can connect to its port: only the machine's own users are trusted.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import threading
import traceback
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from delta_transcoders.inspector.request import Request, request_of
from delta_transcoders.pages.encoding import json_text
from delta_transcoders.pages.templates import asset
from delta_transcoders.report.templates import environment

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from delta_transcoders.inspector.session import Session

LARGEST_BODY = 256 * 1024
"""Bytes: several times the longest prompt."""
FOLDER = Path(__file__).parent


def application(session: Session, url: str) -> Starlette:
    """`GET /` is the page, `POST /answer` a JSON request's events, one a line, as they come.

    Args:
        url: where it is served, as in `http://127.0.0.1:8731/`.
    """
    page, policy = _page(session)
    worker = ThreadPoolExecutor(1, "models")

    async def show(request: HttpRequest) -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    async def answer(request: HttpRequest) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return refusal(415, "the request must be JSON (Content-Type: application/json)")
        body = await _body(request)
        if body is None:
            return refusal(413, f"the request is longer than {LARGEST_BODY // 1024} kB")
        try:
            content = json.loads(body)
        except (ValueError, RecursionError) as error:
            return refusal(400, f"the request is not JSON: {error}")
        try:
            asked = request_of(content)
            await asyncio.get_running_loop().run_in_executor(worker, session.check, asked)
        except RecursionError:
            return refusal(422, "the request is nested too deeply")
        except ValueError as error:
            return refusal(422, str(error))
        return _Closed(_lines(session, asked, worker), media_type="application/x-ndjson")

    async def failed(request: HttpRequest, error: Exception) -> Response:
        return refusal(error.status_code, error.detail)

    async def crashed(request: HttpRequest, error: Exception) -> Response:
        traceback.print_exception(error)
        return refusal(500, "an error in the program itself; its terminal shows which")

    routes = [Route("/", show), Route("/answer", answer, methods=["POST"])]
    handlers = {404: failed, 405: failed, Exception: crashed}
    served = Starlette(routes=routes, exception_handlers=handlers)
    served.add_middleware(_Guard, url=url)
    return served


def refusal(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status)


class _Guard:
    """Refuses what is not from this server's own page, or from no page at all; marks every answer."""

    def __init__(self, app: ASGIApp, url: str) -> None:
        self.app = app
        port = url.rstrip("/").rpartition(":")[2]
        names = ("127.0.0.1", "localhost")
        # Browsers leave out the port that http has by itself.
        self.hosts = {*(f"{name}:{port}" for name in names), *(names if port == "80" else ())}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Content-Security-Policy", "default-src 'none'")
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                headers["Cross-Origin-Resource-Policy"] = "same-origin"
                headers["Cache-Control"] = "no-store"
            await send(message)

        problem = self._problem(Headers(scope=scope))
        app = refusal(403, problem) if problem else self.app
        await app(scope, receive, marked)

    def _problem(self, headers: Headers) -> str | None:
        host, origins = headers.get("host", ""), headers.getlist("origin")
        if host not in self.hosts:
            return f"the request is for {host[:60]!r}, not for this machine's own server"
        for origin in origins:
            if origin.removeprefix("http://") != host:
                return f"the request is from a page of {origin[:60]!r}"
        return None


async def _body(request: HttpRequest) -> bytes | None:
    """The body, or None where it is too long; then the rest is not read."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_BODY:
            return None
    return bytes(body)


class _Closed(StreamingResponse):
    """A stream whose source is closed when it ends, in whatever way."""

    async def stream_response(self, send: Callable[[Message], Awaitable[None]]) -> None:
        async with aclosing(self.body_iterator):
            await super().stream_response(send)


async def _lines(
    session: Session, asked: Request, worker: ThreadPoolExecutor
) -> AsyncIterator[str]:
    """Events as lines of JSON. The models never wait for a client that reads slowly, or not at all.

    Each `texts` holds all that is written so far, so that only the latest of those waits to be sent.
    """
    loop, gone = asyncio.get_running_loop(), threading.Event()
    waiting: deque[dict[str, Any] | None] = deque()
    arrived = asyncio.Event()

    def add(event: dict[str, Any] | None) -> None:
        if event and waiting and event["event"] == waiting[-1]["event"] == "texts":
            waiting.pop()
        waiting.append(event)
        arrived.set()

    def put(event: dict[str, Any] | None) -> None:
        if not gone.is_set():
            loop.call_soon_threadsafe(add, event)

    def produce() -> None:
        try:
            if gone.is_set():
                return
            with closing(session.answer(asked)) as answered:
                for event in answered:
                    put(event)
                    if gone.is_set():
                        return
        except Exception as error:
            traceback.print_exception(error)
            put({"event": "error", "error": f"{type(error).__name__}: {error}"})
        finally:
            put(None)

    worker.submit(produce)
    try:
        while await arrived.wait():
            event = waiting.popleft()
            if event is None:
                return
            if not waiting:
                arrived.clear()
            yield json.dumps(event, ensure_ascii=False) + "\n"
    finally:
        gone.set()


def _text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _page(session: Session) -> tuple[str, str]:
    """The page, and the policy that lets it run its own script and nothing else."""
    scripts = [asset("dom.js"), asset("theme.js"), _text("inspector.js")]
    styles = [asset("../base.css"), asset("token_strip.css"), _text("inspector.css")]
    script = "\n".join(scripts)
    page = (
        environment(FOLDER)
        .get_template("inspector.html.j2")
        .render(
            study=session.parts.study,
            script=Markup(script),
            style=Markup("\n".join(styles)),
            info=Markup(json_text(session.info())),
        )
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, policy
