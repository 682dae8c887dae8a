"""`/metrics` over HTTP on loopback or a Unix socket: one answer a connection, each from one fresh snapshot."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from reconcilers.opener.ask import opened

log: structlog.stdlib.BoundLogger = structlog.get_logger()

REQUEST_MAX = 8192
"""Bytes of a request's head; Prometheus sends a few hundred."""

REQUEST_SECONDS = 5.0
"""Bound for a request to arrive and for its answer to be taken."""

AT_ONCE = 4
"""Scrapes that are answered at the same time; more wait, so that nobody can have the agent busy with them."""

UNIX = "unix:"

Render = Callable[[str], Awaitable[tuple[str, bytes]]]
"""From the request's `Accept` to the answer's content type and body."""


@asynccontextmanager
async def serving(listen: str, render: Render) -> AsyncIterator[None]:
    """Answer for the length of the block. A port that can't be had is told in the log, and disks go on all the same.

    Args:
        listen: `127.0.0.1:9477`, `[::1]:9477` or `unix:/run/tapster/metrics.sock`.
        render: Makes the answer.
    """
    turns = asyncio.Semaphore(AT_ONCE)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_SECONDS), turns:
                writer.write(await _response(reader, render))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return
        finally:
            writer.close()

    try:
        server = await _listening(listen, answer)
    except OSError as error:
        log.error("metrics can't be served", listen=listen, why=str(error), remedy="change metrics.listen")
        yield
        return
    log.info("serving metrics", listen=listen)
    try:
        yield
    finally:
        server.close()
        _remove(listen)


async def _listening(
    listen: str, answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
) -> asyncio.Server:
    if not listen.startswith(UNIX):
        host, _, port = listen.rpartition(":")
        listener = await asyncio.to_thread(opened, "listener", host.strip("[]"), int(port))
        return await asyncio.start_server(answer, sock=socket.socket(fileno=listener), limit=REQUEST_MAX)
    return await asyncio.start_unix_server(answer, sock=_bound(_path(listen)), limit=REQUEST_MAX)


def _bound(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)  # of an agent that was killed; a live one has its runtime folder to itself
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        bound.bind(str(path))
        path.chmod(0o660)  # before it listens: until then nobody gets in
    except OSError:
        bound.close()
        raise
    return bound


def _remove(listen: str) -> None:
    if listen.startswith(UNIX):
        _path(listen).unlink(missing_ok=True)


def _path(listen: str) -> Path:
    return Path(listen.removeprefix(UNIX))


async def _response(reader: asyncio.StreamReader, render: Render) -> bytes:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    request, *lines = head.split("\r\n")
    method, _, rest = request.partition(" ")
    if method not in {"GET", "HEAD"}:
        return _message("405 Method Not Allowed", "text/plain", b"only GET is answered\n")
    if rest.split(" ")[0].partition("?")[0] != "/metrics":
        return _message("404 Not Found", "text/plain", b"there is /metrics here\n")
    fields = dict(line.lower().partition(":")[::2] for line in lines)
    kind, body = await render(fields.get("accept", "").strip())
    return _message("200 OK", kind, body, with_body=method == "GET")


def _message(status: str, kind: str, body: bytes, *, with_body: bool = True) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode("latin-1") + (body if with_body else b"")
