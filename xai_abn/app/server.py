"""The web server of the page: routes, limits, and what a browser may do."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xai_abn.app.service import MAX_UPLOAD, OfferedModel, Question, Service, UnknownImageError
from xai_abn.datasets.sample import Sample
from xai_abn.errors import InvalidInputError, UnsupportedModelError, XaiAbnError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from xai_abn.models.adapter import ModelAdapter

#: The files of the page; no other is served.
PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/maps.js": ("maps.js", "text/javascript; charset=utf-8"),
    "/paint.js": ("paint.js", "text/javascript; charset=utf-8"),
}
#: What a browser may load and do: only what comes from this server.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
#: Names of this machine; a page elsewhere that has itself resolved to it is refused.
LOCAL = ("127.0.0.1", "localhost", "[::1]")
#: Methods, and further classes, at a time; letters of a value in an address.
_MOST, _LONGEST = 12, 2000


def make_app(service: Service, host: str = "127.0.0.1") -> Starlette:
    """Return the web application.

    Args:
        service: what it serves.
        host: the address that it is bound to. Bound to this machine alone, it answers to no other name.

    Raises:
        UnsupportedModelError: starlette is not installed.
    """
    try:
        from starlette.applications import Starlette
        from starlette.concurrency import run_in_threadpool
        from starlette.responses import JSONResponse, Response
        from starlette.routing import Route
    except ImportError as error:
        raise UnsupportedModelError("the page needs starlette; run pip install 'xai-abn[app]'") from error

    def answer(work: Callable[[Query, bytes], Any], headers: Mapping[str, str] | None = None) -> Any:
        """Return an endpoint that gives what a function makes of address and body, or its error as a sentence."""

        async def endpoint(request: Request) -> Response:
            try:
                body = await _body(request)
                found = await run_in_threadpool(work, Query(request.query_params), body)
            except UnknownImageError as error:
                return JSONResponse({"error": error.line, "unknown_image": True}, 404)
            except XaiAbnError as error:
                return JSONResponse({"error": error.line}, 400)
            except _TooLargeError:
                limit = f"{MAX_UPLOAD // 2**20} MB"
                return JSONResponse({"error": f"the file is larger than {limit}; give a smaller image"}, 413)
            if isinstance(found, tuple):
                name, content = found
                disposition = f'attachment; filename="{_plain(name)}"'
                return Response(
                    content, media_type="application/octet-stream", headers={"Content-Disposition": disposition}
                )
            if isinstance(found, bytes):
                kind = "image/png" if found.startswith(b"\x89PNG") else "application/octet-stream"
                return Response(found, media_type=kind)
            return JSONResponse(found)

        return endpoint

    def page(name: str, kind: str) -> Any:
        content = (files("xai_abn.app") / "page" / name).read_bytes()

        async def endpoint(_: Request) -> Response:
            return Response(content, media_type=kind)

        return endpoint

    def maps(query: Query) -> Question:
        return Question(
            *query.place(),
            query.methods(),
            query.number("target"),
            query.number("versus"),
            query.numbers("also"),
        )

    def painted(query: Query) -> tuple[str, str, int]:
        return (*query.place(), query.index("target"))

    def file(query: Query, _: bytes) -> tuple[str, bytes]:
        kind = query.text("kind")
        if kind not in ("image", "map", "record"):
            raise InvalidInputError(f"kind must be image, map or record, got {kind!r}")
        return service.file(kind, maps(query), query.index("map"), query.share("opacity"))  # type: ignore[arg-type]

    routes = [Route(path, page(*entry)) for path, entry in PAGE.items()]
    routes += [
        Route("/api/start", answer(lambda query, body: service.start())),
        Route("/api/model", answer(lambda query, body: service.describe(query.text("model")))),
        Route("/api/images", answer(lambda query, body: service.upload(body, query.text("name"))), methods=["POST"]),
        Route("/api/view", answer(lambda query, body: service.view(*query.place()))),
        Route("/api/thumbnail", answer(lambda query, body: service.thumbnail(*query.place()))),
        Route("/api/explain", answer(lambda query, body: service.explain(maps(query)))),
        Route("/api/polarity", answer(lambda query, body: service.polarity(maps(query)))),
        Route("/api/file", answer(file)),
        Route("/api/edit", answer(lambda query, body: service.edit(*painted(query), body)), methods=["POST"]),
        Route("/api/corrections", answer(lambda query, body: service.corrections(*query.place()))),
        Route("/api/corrections", answer(lambda query, body: service.save(*painted(query), body)), methods=["POST"]),
        Route("/api/queue", answer(lambda query, body: service.queue(query.text("model")))),
        Route("/api/marks", answer(lambda query, body: service.marks(*painted(query)))),
    ]

    async def failed(_: Request, error: Exception) -> Response:
        kind = type(error).__name__
        return JSONResponse({"error": f"the server failed ({kind}); its terminal says more, and nothing is lost"}, 500)

    async def not_found(_: Request, __: Exception) -> Response:
        return JSONResponse({"error": "there is nothing at this address"}, 404)

    app = Starlette(routes=routes, exception_handlers={500: failed, 404: not_found})
    app.add_middleware(_Guard, hosts=LOCAL if host in ("127.0.0.1", "localhost", "::1") else None)
    return app


def run(
    model: ModelAdapter,
    *,
    corrections: str | Path = "corrections",
    images: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 8017,
) -> None:
    """Serve the page for a model made in Python, until the process is interrupted.

    Args:
        model: the model.
        corrections: folder of the corrections.
        images: paths of images to choose from.
        host: address to bind to.
        port: the port; 0 for any that is free.

    Raises:
        UnsupportedModelError: the extra ``app`` is not installed, or the model is no classifier.
        InvalidInputError: the address or port cannot be used.
    """
    service = Service([OfferedModel(model.name, lambda: model)], corrections, [Sample(path) for path in images])
    serve(service, host, port, lambda address: print(f"{address}  (Ctrl-C ends it)"))


def serve(service: Service, host: str, port: int, started: Callable[[str], None]) -> None:
    """Serve the page until the process is interrupted.

    Args:
        service: what to serve.
        host: address to bind to.
        port: the port; 0 for any that is free.
        started: called with the address of the page once it answers.

    Raises:
        UnsupportedModelError: uvicorn is not installed.
        InvalidInputError: the address or port cannot be used.
    """
    import socket

    try:
        import uvicorn
    except ImportError as error:
        raise UnsupportedModelError("the page needs uvicorn; run pip install 'xai-abn[app]'") from error
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InvalidInputError(f"--host {host} --port {port}: {reason}; choose another, or --port 0") from error
        shown = f"[{host}]" if ":" in host else host
        config = uvicorn.Config(make_app(service, host), log_level=logging.WARNING, lifespan="off", server_header=False)
        started(f"http://{shown}:{bound.getsockname()[1]}/")
        uvicorn.Server(config).run(sockets=[bound])


class Query:
    """The values in an address, each checked when it is asked for.

    Args:
        values: by name.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def text(self, name: str) -> str:
        """Return a text, or refuse one that is missing or too long."""
        value = self._values.get(name, "")
        if not value or len(value) > _LONGEST:
            raise InvalidInputError(f"expected {name} of at most {_LONGEST} letters, got {len(value)}")
        return value

    def number(self, name: str) -> int | None:
        """Return a whole number, or None."""
        value = self._values.get(name, "")
        if value and not (value.isdecimal() and len(value) < 10):
            raise InvalidInputError(f"{name} must be a whole number, got {value[:20]!r}")
        return int(value) if value else None

    def index(self, name: str) -> int:
        """Return a whole number, which must be there."""
        found = self.number(name)
        if found is None:
            raise InvalidInputError(f"expected {name}, a whole number")
        return found

    def share(self, name: str) -> float | None:
        """Return a number in [0, 1], or None if there is none."""
        if name not in self._values:
            return None
        try:
            value = float(self._values[name])
        except ValueError:
            value = float("nan")
        if not 0 <= value <= 1:
            raise InvalidInputError(f"{name} must be a number in [0, 1]")
        return value

    def place(self) -> tuple[str, str]:
        """Return the names of model and image."""
        return self.text("model"), self.text("image")

    def methods(self) -> tuple[str, ...]:
        """Return the names of methods."""
        found = self.text("methods").split("|")
        if len(found) > _MOST:
            raise InvalidInputError(f"give at most {_MOST} methods at a time, got {len(found)}")
        return tuple(found)

    def numbers(self, name: str) -> tuple[int, ...]:
        """Return whole numbers with commas between them, or none."""
        found = [part for part in self._values.get(name, "")[:_LONGEST].split(",") if part]
        if len(found) > _MOST or not all(part.isdecimal() and len(part) < 10 for part in found):
            raise InvalidInputError(f"{name} must be at most {_MOST} whole numbers with commas, got {len(found)}")
        return tuple(map(int, found))


class _TooLargeError(Exception):
    """Raised when a body is larger than is taken."""


async def _body(request: Request) -> bytes:
    """Return the body of a request; of one that is too large nothing is kept.

    It is read on for a while, since a browser that cannot send all does not read the answer.
    """
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size <= MAX_UPLOAD:
            parts.append(part)
        elif size > 4 * MAX_UPLOAD:
            break
        else:
            parts.clear()
    if size > MAX_UPLOAD:
        raise _TooLargeError
    return b"".join(parts)


class _Guard:
    """Refuses requests that another site makes, and adds the headers to every answer."""

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...] | None) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        given = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = given.get(b"host", ""), given.get(b"origin")
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        if self.hosts is not None and name not in self.hosts:
            await self._refuse(with_headers, f"this server only answers requests to {', '.join(self.hosts)}")
        elif origin is not None and origin.partition("://")[2] != host:
            await self._refuse(with_headers, "another site may not use this server")
        else:
            await self.app(scope, receive, with_headers)

    @staticmethod
    async def _refuse(send: Send, why: str) -> None:
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps({"error": why}).encode()})


def _plain(name: str) -> str:
    """Return the name of a file as it may stand in a header."""
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_.") else "_" for letter in name)
