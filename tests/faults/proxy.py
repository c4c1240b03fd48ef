"""An HTTP proxy in front of a server that answers some requests with an error, or late."""

from __future__ import annotations

import http.client
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FaultyProxy:
    """Passes requests on to a port of this machine.

    A share ``errors`` of them gets 500 or 503 instead, a share ``slow`` waits first. Within
    ``outage`` seconds of `break_down` every request fails.
    """

    def __init__(self, port, seed, errors=0.1, slow=0.05):
        self.port = port
        self.errors, self.slow = errors, slow
        self.random = random.Random(seed)
        self.lock = threading.Lock()
        self.failed = self.passed = 0
        self.down_until = 0.0
        self.server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Bound", (_Handler,), {"proxy": self})
        )
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f"127.0.0.1:{self.server.server_port}"

    def break_down(self, seconds):
        self.down_until = time.monotonic() + seconds

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def fate(self):
        """Status to answer with or None, and seconds to wait."""
        with self.lock:
            chance, wait = self.random.random(), self.random.random()
            if chance < self.errors or time.monotonic() < self.down_until:
                self.failed += 1
                return self.random.choice((500, 503)), 0.0
            self.passed += 1
            return None, self.random.uniform(0.2, 1.5) if wait < self.slow else 0.0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy = None

    def handle_any(self):
        body = self.body()
        status, wait = self.proxy.fate()
        time.sleep(wait)
        if status is not None:
            self.answer(status, [], b"")
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self.proxy.port, timeout=60)
        headers = {
            k: v
            for k, v in self.headers.items()
            if k.lower() not in ("transfer-encoding", "expect", "connection")
        }
        headers["Content-Length"] = str(len(body))
        upstream.request(self.command, self.path, body, headers)
        response = upstream.getresponse()
        self.answer(response.status, response.getheaders(), response.read())
        upstream.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            content = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return content
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, status, headers, content):
        self.send_response(status)
        own = ("content-length", "transfer-encoding", "connection", "server", "date")
        length = str(len(content))
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            if name.lower() not in own:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass
