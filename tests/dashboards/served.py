"""An explorer that listens, in a thread of the tests, and who asks it."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from dashboards.explorer.root import Root
from dashboards.explorer.server import application
from infra.bucket import Bucket

EDGES = {"files": [], "images": ["files"], "clips": ["images"], "scores": ["clips"], "captions": ["clips", "scores"]}
EDGES |= {"model": [], "evals": ["model", "scores"]}


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The document."""
        return json.loads(self.body)


@dataclass
class Explorer:
    """Where one listens."""

    url: str

    def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        """Ask; an error is an answer as well."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, headers=names, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return Answer(reply.status, {k.lower(): v for k, v in reply.headers.items()}, reply.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())

    def json(self, path: str) -> Any:
        """A good answer's document."""
        found = self.get(path)
        assert found.status == 200, found.body
        return found.json


@contextmanager
def explorer(bucket: Bucket, overrides: Sequence[str] = ()) -> Generator[Explorer]:
    """Listen on loopback while the context is."""
    listening = socket.create_server(("127.0.0.1", 0))
    app = application(Root(bucket, overrides, EDGES))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield Explorer(f"http://127.0.0.1:{listening.getsockname()[1]}")
    finally:
        server.should_exit = True
        thread.join(10)
