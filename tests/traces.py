"""A collector of LangSmith's traces on loopback, which keeps what it is sent."""

from __future__ import annotations

import gzip
import json
import threading
from email.parser import BytesParser
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

INGEST = {
    "use_multipart_endpoint": True,
    "scale_up_qsize_trigger": 1000,
    "scale_up_nthreads_limit": 2,
    "scale_down_nempty_trigger": 4,
    "size_limit": 100,
    "size_limit_bytes": 20_000_000,
}


class Collector:
    """Takes runs by `/runs/multipart` and `/runs/batch`, and spans by `/v1/traces`."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.bytes = self.calls = 0
        self.spans: list[bytes] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take(self, path: str, content_type: str, body: bytes) -> None:
        with self._lock:
            self.bytes += len(body)
            if path.endswith("/v1/traces"):
                self.spans.append(body)
            elif path.endswith("/multipart"):
                self.read_multipart(content_type, body)
            else:
                self.read_batch(json.loads(body))

    def read_multipart(self, content_type: str, body: bytes) -> None:
        head = f"Content-Type: {content_type}\r\n\r\n".encode()
        for part in BytesParser().parsebytes(head + body).walk():
            name = part.get_param("name", header="content-disposition")
            if not isinstance(name, str) or part.is_multipart():
                continue
            payload = part.get_payload(decode=True)
            assert isinstance(payload, bytes)
            _, id_, *field = name.split(".", 2)
            value = json.loads(payload)
            self.update(id_, {field[0]: value} if field else value)

    def read_batch(self, batch: dict[str, Any]) -> None:
        for run in (*(batch.get("post") or ()), *(batch.get("patch") or ())):
            self.update(run["id"], run)

    def update(self, id_: str, fields: dict[str, Any]) -> None:
        run = self.runs.setdefault(id_, {})
        run |= {name: value for name, value in fields.items() if value is not None}

    @property
    def model_runs(self) -> list[dict[str, Any]]:
        return [run for run in self.runs.values() if run.get("run_type") == "llm"]

    def tree(self) -> list[str]:
        """The names of the runs, indented by depth, in order of their start."""
        lines: list[str] = []

        def add(parent: str | None, depth: int) -> None:
            children = [
                (run["dotted_order"], id_, run["name"])
                for id_, run in self.runs.items()
                if run.get("parent_run_id") == parent
            ]
            for _, id_, name in sorted(children):
                lines.append("  " * depth + name)
                add(id_, depth + 1)

        add(None, 0)
        return lines


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, collector: Collector, *args: Any) -> None:
        self.collector = collector
        super().__init__(*args)

    def do_GET(self) -> None:
        self.answer({"batch_ingest_config": INGEST})

    def do_POST(self) -> None:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline().strip() or b"0", 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.collector.take(self.path, self.headers["Content-Type"], body)
        self.answer({})

    def do_PATCH(self) -> None:
        self.do_POST()

    def answer(self, content: Any) -> None:
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        pass
