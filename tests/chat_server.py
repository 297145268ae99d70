"""An OpenAI-compatible server for tests: it adds numbers as a teacher would, and fails in every way that it is told to.

What it answers follows from the messages alone, so every run of it writes the same.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from lt_jax.data.problem import Problem

FAULTS = ("429", "500", "slow", "drop", "no json", "no choices", "half")
SLOW = 2.5  # seconds, longer than a client of the tests waits


def problems(count: int):
    """Sums of two numbers, one by one."""
    for number in range(count):
        yield Problem(f"Add {number} and {7 * number + 1}.", str(8 * number + 1), f"sum {number % 2}")


def turn(message: str) -> str:
    """The next turn of one who commits, looks at it again, folds it, and answers."""
    a, b = map(int, re.search(r"Add (\d+) and (\d+)", message).groups())
    if "no entities" in message:
        return f"{a} and {b} are {a + b}.\n<commit>The sum is {a + b}.</commit>\n"
    if "<fold>1</fold>" in message:
        return f"So it is.<final_answer>{a + b}</final_answer>"
    return "Seen.<fold>1</fold>" if "active: 1" in message else "Once more.<expand>1</expand>"


class Server:
    """The server; a context manager that runs it in a thread.

    Attributes:
        faulty: whether the first time that a request comes it may be answered by one of `FAULTS`, chosen by its hash.
        answered: {request: how often it was answered well}, requests told apart by their messages.
        faults: how often each was injected. headers, bodies: of all requests. most: the most at once.
    """

    def __init__(self, faulty: bool = False, pause: float = 0.0, status: int = 0, said: str = ""):
        self.faulty, self.pause, self.status, self.said = faulty, pause, status, said
        self.answered, self.faults, self.seen = (collections.Counter() for _ in range(3))
        self.headers, self.bodies, self.at = [], [], []
        self.now = self.most = 0
        self.lock = threading.Lock()

    def __enter__(self) -> Server:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _handler(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                with contextlib.suppress(BrokenPipeError, ConnectionResetError, json.JSONDecodeError):  # cut off
                    outer.handle(self)

            def log_message(self, *_):
                pass

        return Handler

    def handle(self, request) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        key = json.dumps(body["messages"])
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.seen[key] += 1
            self.headers.append(dict(request.headers))
            self.bodies.append(body)
            self.at.append(time.monotonic())
            kind = hashlib.sha256(key.encode()).digest()[0] % (len(FAULTS) + 2)
            fault = FAULTS[kind] if self.faulty and kind < len(FAULTS) and self.seen[key] == 1 else ""
            self.faults[fault] += bool(fault)
        time.sleep(self.pause)
        with self.lock:
            self.now -= 1  # before the answer, for behind it the next one may come at once
        self.answer(request, body, key, fault)

    def answer(self, request, body: dict, key: str, fault: str) -> None:
        if self.status:
            return send(request, self.status, json.dumps({"error": {"message": self.said}}))
        if fault == "429":
            return send(request, 429, '{"error": {"message": "slower"}}', {"Retry-After": "0.05"})
        if fault == "500":
            return send(request, 500, "<html>oh no</html>")
        if fault == "drop":
            request.connection.shutdown(socket.SHUT_RDWR)
            request.close_connection = True
            return None
        if fault == "no json":
            return send(request, 200, "not JSON at all")
        if fault == "no choices":
            return send(request, 200, '{"choices": []}')
        if fault == "slow":
            time.sleep(SLOW)
        text = turn(body["messages"][-1]["content"])
        usage = {"prompt_tokens": len(key) // 4, "completion_tokens": len(text) // 4,
                 "prompt_tokens_details": {"cached_tokens": 2}}  # fmt: skip
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        whole = json.dumps({"choices": [choice], "usage": usage})
        if fault == "half":
            return send(request, 200, whole[: len(whole) // 2])
        if not fault:
            with self.lock:
                self.answered[key] += 1
        return send(request, 200, whole)


def send(request, status: int, text: str, headers=()) -> None:
    data = text.encode()
    request.send_response(status)
    for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **dict(headers)}.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(data)
