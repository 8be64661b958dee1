"""A proxy before an S3 store, on loopback, that misbehaves at stated rates, seeded, and counts what it did."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect", "server", "date"}
ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>of the proxy</Message></Error>"
CODES = {"500": "InternalError", "503": "SlowDown"}
DRIBBLES = 4
DRIBBLE_S = 0.02


class S3Proxy(ThreadingHTTPServer):
    """`rates` maps a fault to its share of requests:

    500, 503   answered in the store's place
    unsent     connection reset before the request reached the store
    unheard    connection reset after the store did it: a lost reply
    cut        the reply's body ends half-way in a reset (reads only)
    dribble    the reply's body comes in a few late pieces (reads only)

    `ignores` names headers (lower case) that the store never hears of: a store without what they ask for.
    `down_after` requests the store is gone: every connection is reset until `down_after` is None again.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, store: str, rates: dict[str, float], seed: int = 0, ignores: tuple[str, ...] = ()) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.store = urlsplit(store)
        self.rates = rates
        self.unheard = {*HOP, *ignores}
        self.random = random.Random(seed)
        self.lock = threading.Lock()
        self.num_requests = 0
        self.num_bytes = 0
        """Bytes of bodies sent to the client."""
        self.down_after: int | None = None
        self.injected: Counter[str] = Counter()
        """How often each fault was injected, by fault, and by (fault, who asked): `boto` or `lance`."""
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> S3Proxy:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def draw(self, method: str, agent: str) -> str | None:
        """The fault of the next request, or None."""
        who = "boto" if "boto" in agent.lower() else "lance"
        with self.lock:
            self.num_requests += 1
            if self.down_after is not None and self.num_requests > self.down_after:
                return "unsent"
            at = self.random.random()
            for fault, rate in self.rates.items():
                if at < rate:
                    if fault in ("cut", "dribble") and method != "GET":
                        return None
                    self.injected[fault] += 1
                    self.injected[f"{fault} {who}"] += 1
                    return fault
                at -= rate
        return None

    def note(self, method: str, path: str) -> None:
        """What was asked for; nobody looks."""

    def shutdown_request(self, request: socket.socket) -> None:
        """Closed without a farewell, so that a linger of zero is a reset."""
        self.close_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients go away in the middle: that is what we are here for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: S3Proxy

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def _one(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.note(self.command, self.path)
        fault = self.server.draw(self.command, self.headers.get("User-Agent", ""))
        if fault in CODES:
            self._answer(int(fault), {"Content-Type": "application/xml"}, ERROR.format(CODES[fault]).encode())
            return
        reply = self._forward(body) if fault != "unsent" else None
        if reply is None or fault == "unheard":
            self._reset()
        else:
            self._answer(*reply, fault)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _one  # noqa: N815 - the names that http.server calls

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes, str]:
        """The store's own answer: status, headers, body, and the length that it gave."""
        there = http.client.HTTPConnection(self.server.store.hostname or "", self.server.store.port, timeout=30)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in self.server.unheard}
        try:
            there.request(self.command, self.path, body, headers)
            reply = there.getresponse()
            data = reply.read()
            kept = {k: v for k, v in reply.getheaders() if k.lower() not in HOP}
            return reply.status, kept, data, reply.getheader("Content-Length") or str(len(data))
        finally:
            there.close()

    def _answer(
        self, status: int, headers: dict[str, str], data: bytes, length: str = "", fault: str | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        sent = data[: len(data) // 2] if fault == "cut" else data
        step = max(1, -(-len(sent) // DRIBBLES)) if fault in ("cut", "dribble") else max(1, len(sent))
        for start in range(0, len(sent), step):
            self.wfile.write(sent[start : start + step])
            self.server.num_bytes += len(sent[start : start + step])
            self.wfile.flush()
            time.sleep(DRIBBLE_S if step < len(sent) else 0)  # or a reset overtakes what was sent
        if fault == "cut":
            self._reset()

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
