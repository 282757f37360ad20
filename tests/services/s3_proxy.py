"""A proxy between a study and its S3 server that does what networks and servers do on a bad day."""

import http.client
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

FAULTS = ("500", "503", "slow", "torn", "down")
"""Answers 500; answers 503 SlowDown; a request waits for `SLOW` seconds; a request is broken off in the middle; nobody
listens any more."""

SLOW = 0.3
_BODIES = {
    "500": (500, b"<Error><Code>InternalError</Code><Message>We encountered an error</Message></Error>"),
    "503": (503, b"<Error><Code>SlowDown</Code><Message>Please reduce your rate</Message></Error>"),
}


class Proxy:
    """Passes requests on, until `fault` names one of FAULTS. requests: how many came while it did."""

    def __init__(self, target: str, port: int = 0) -> None:
        self._target = urlsplit(target).netloc
        self._fault = ""
        self.requests = 0
        self._server: ThreadingHTTPServer | None = None
        self._port = port
        self._listen()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def fault(self) -> str:
        return self._fault

    @fault.setter
    def fault(self, name: str) -> None:
        assert name in ("", *FAULTS)
        self._fault, self.requests = name, 0
        if name == "down":
            self.close()
        elif self._server is None:
            self._listen()

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = None

    def _listen(self) -> None:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass(self) -> None:
                with suppress(OSError):  # either side may go away at any time
                    proxy.handle(self)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass

            def log_message(self, *_: object) -> None:
                """Nothing on the terminal."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

        self._server = Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        """One request, by the present fault."""
        fault = self._fault
        self.requests += bool(fault)
        length = int(request.headers.get("Content-Length", 0))
        if fault in ("torn", "down"):  # a connection that was kept open outlives the listener
            request.rfile.read(length // 2)
            # no farewell: the client sees a reset, not an end
            request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request.close_connection = True
            request.connection.close()
            return
        if request.headers.get("Expect", "").lower() == "100-continue" and fault not in _BODIES:
            request.send_response_only(100)
            request.end_headers()
        body = request.rfile.read(length)
        if fault in _BODIES:
            status, answer = _BODIES[fault]
            self._reply(request, status, [("Content-Type", "application/xml")], answer, len(answer))
            request.close_connection = True
            return
        if fault == "slow":
            time.sleep(SLOW)
        connection = http.client.HTTPConnection(self._target, timeout=60)
        try:
            connection.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            answered = connection.getresponse()
            content = answered.read()
            announced = int(answered.headers.get("Content-Length", len(content)))
            headers = [
                (n, v)
                for n, v in answered.headers.items()
                if n.lower() not in ("content-length", "connection", "transfer-encoding")
            ]
            self._reply(request, answered.status, headers, content, announced)
        finally:
            connection.close()

    @staticmethod
    def _reply(
        request: BaseHTTPRequestHandler, status: int, headers: list[Any], content: bytes, announced: int
    ) -> None:
        request.send_response_only(status)
        for name, value in headers:
            request.send_header(name, value)
        if status != 204:
            request.send_header("Content-Length", str(announced))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content)


@contextmanager
def proxied(target: str) -> Iterator[Proxy]:
    """A proxy in front of the server at a URL."""
    proxy = Proxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
