"""A server of the page in a thread, and what a browser does with it."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from urllib.parse import urlencode

import uvicorn

from xai_abn.app.server import make_app
from xai_abn.app.service import OfferedModel, Service


class Serving:
    """A running server.

    Args:
        models: adapters, the first one shown; those that :func:`xai_abn.load_model` knows by name.
        corrections: folder of the corrections.
        images: paths to choose from.
    """

    def __init__(self, models, corrections, images=()):
        self.service = Service([OfferedModel(m.name, lambda m=m: m, {}) for m in models], corrections, images)
        self.port = 0
        self.start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", self.port))
        self.port = bound.getsockname()[1]
        self._server = uvicorn.Server(uvicorn.Config(make_app(self.service), log_level="error", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [bound]}, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 20
        while not self._server.started and time.monotonic() < deadline:
            time.sleep(0.01)

    def stop(self):
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)

    def ask(self, path, body=None, headers=None, **values):
        """Return the status and the answer: of JSON its value, else the bytes."""
        return ask(self.address, path, body, headers, **values)


def ask(address, path, body=None, headers=None, **values):
    request = urllib.request.Request(f"{address}/{path}?{urlencode(values)}", data=body, headers=headers or {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as response:
            status, kind, content = response.status, response.headers["content-type"], response.read()
    except urllib.error.HTTPError as error:
        status, kind, content = error.code, error.headers["content-type"], error.read()
    return status, json.loads(content) if kind == "application/json" else content
