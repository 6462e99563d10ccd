"""Serves the page to browsers on this machine, and to no other site that they show."""

from __future__ import annotations

import socket
import sys

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .images import MAX_FILE_BYTES

_LOCAL_HOSTS = ("127.0.0.1", "localhost")
# The page's own scripts and styles are inline in part. Nothing is loaded from, or sent to, anywhere else.
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'; form-action 'self'; "
    "base-uri 'self'"
)


class LocalOnly:
    """ASGI middleware: refuses other hosts (DNS rebinding) and other origins, and keeps the page off the network."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if host.partition(":")[0] not in _LOCAL_HOSTS or origin not in (None, f"http://{host}"):
            refusal = PlainTextResponse("This page answers only itself, on this machine.\n", status_code=403)
            await refusal(scope, receive, send)
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = _POLICY
            await send(message)

        await self.app(scope, receive, send_with_policy)


def listen(port: int) -> socket.socket:
    """A socket on this machine's loopback interface; 0: any free port.

    Raises:
        OSError: the port is taken.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if sys.platform != "win32":  # there it would let two programs share a port
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
        listening.listen()  # early visitors wait
    except OSError as error:
        listening.close()
        raise OSError(f"Port {port} cannot be used ({error.strerror}): name another (--port N)") from error
    return listening


def serve(page: gr.Blocks, listening: socket.socket) -> None:
    """Answers until the process is interrupted."""
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        page,
        path="/",
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        footer_links=[],
        max_file_size=MAX_FILE_BYTES,
        ssr_mode=False,
    )
    app.add_middleware(LocalOnly)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])
