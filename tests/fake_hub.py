"""A Hugging Face hub on this machine: the routes that huggingface_hub asks, over a folder's files."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """One repository, ``owner/name``, with the branch ``main``.

    ``breaks`` says after how many bytes the connection breaks the next times that a file is sent, by its path;
    ``gated`` refuses files. ``asked`` are the methods, paths and ranges of all requests.
    """

    folder: Path
    breaks: dict[str, list[int]] = field(default_factory=dict)
    gated: bool = False
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""

    def sent(self) -> list[str]:
        """The files that were sent, or begun, in order."""
        return [
            path.rpartition(COMMIT + "/")[2] for method, path, _ in self.asked if method == "GET" and COMMIT in path
        ]

    @contextmanager
    def running(self) -> Iterator[FakeHub]:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path, self.headers.get("Range")))
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._api(parts[2:])
        elif parts[:2] != ["owner", "name"]:
            self._refuse(404, "RepoNotFound")
        elif parts[2] == "resolve" and (self.hub.folder / "/".join(parts[4:])).is_file():
            self._file("/".join(parts[4:]))
        else:
            self._refuse(404, "EntryNotFound")

    do_HEAD = do_GET

    def _api(self, parts: list[str]) -> None:
        if parts[:2] != ["owner", "name"]:
            self._refuse(404, "RepoNotFound")
        elif len(parts) > 3 and parts[3] not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        elif len(parts) > 2 and parts[2] == "tree":
            self._send(json.dumps([self._entry(file) for file in self._files()]).encode())
        else:
            names = [{"rfilename": file.relative_to(self.hub.folder).as_posix()} for file in self._files()]
            self._send(json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": names}).encode())

    def _files(self) -> list[Path]:
        return sorted(file for file in self.hub.folder.rglob("*") if file.is_file())

    def _entry(self, file: Path) -> dict[str, object]:
        name = file.relative_to(self.hub.folder).as_posix()
        return {"type": "file", "path": name, "size": file.stat().st_size, "oid": _etag(file)}

    def _file(self, name: str) -> None:
        if self.hub.gated:
            self._refuse(403, "GatedRepo")
            return
        data = (self.hub.folder / name).read_bytes()
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        breaks = self.hub.breaks.get(name)
        end = start + breaks.pop(0) if breaks and self.command == "GET" else None
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{_etag(self.hub.folder / name)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[start:end])
        self.close_connection = end is not None

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
