"""A stand-in for the Hugging Face hub: enough of it to make a data set and commit files."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub:
    """Serves on loopback; `files` holds what was committed, `status` refuses with a status.

    With `there` the data set exists before.
    """

    def __init__(self, status: int = 200, *, there: bool = False) -> None:
        self.status, self.there = status, there
        self.files: dict[str, bytes] = {}
        self.made: list[dict[str, Any]] = []
        self.tokens: list[str | None] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hub.tokens.append(self.headers.get("Authorization"))
                making = self.path.endswith("/repos/create")
                status = 409 if hub.there and making else hub.status
                said = hub.answer(self.path, body) if status == 200 else {"error": "no"}
                answer = json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: bytes) -> Any:
        if path.endswith("/validate-yaml"):
            return {"errors": [], "warnings": []}
        if path.endswith("/repos/create"):
            self.made.append(json.loads(body))
            return {"url": f"{self.url}/datasets/{self._id()}"}
        if "/preupload/" in path:
            named = [f["path"] for f in json.loads(body)["files"]]
            regular = {"uploadMode": "regular", "shouldIgnore": False}
            return {"files": [{"path": name, **regular} for name in named]}
        for line in body.splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                self.files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
        return {
            "commitUrl": f"{self.url}/datasets/{self._id()}/commit/{'0' * 40}",
            "commitOid": "0" * 40,
        }

    def _id(self) -> str:
        if not self.made:
            return "me/rows"
        made = self.made[-1]
        return f"{made.get('organization') or 'me'}/{made['name']}"
