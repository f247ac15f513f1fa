"""Running the tour's commands and programs in a folder of their own, over a server that the tour starts itself."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tour.script import Command

ROOT = Path(__file__).parents[1]
PORT = 8000
"""The port that the tour's text tells of; what really listens has a free one."""

_START = 120.0
_LONGEST = 300.0


class TourError(Exception):
    """A step of the tour did not go as its text says."""


class Terminal:
    """A shell in ``folder``, and the servers that were started in it. Leaving it ends them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = _free_port()
        self._servers: list[subprocess.Popen[bytes]] = []
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        self._environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "NO_COLOR": "1"}
        for name in ("MMSERVE_SERVER", "MMSERVE_API_KEY"):
            self._environment.pop(name, None)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.send_signal(signal.SIGINT)
            server.wait(30)

    def run(self, command: Command) -> str:
        """What the command prints. Raises ``TourError`` where its exit status is not the one that the tour tells."""
        if command.serves:
            return self._serve(command)
        return self._finish(["bash", "-c", self._really(command.text)], command.status, command.text)

    def run_program(self, text: str) -> str:
        """What a Python program prints. Raises ``TourError`` where it fails."""
        return self._finish([sys.executable, "-W", "error", "-c", self._really(text)], 0, text)

    def _finish(self, command: list[str], status: int, shown: str) -> str:
        done = subprocess.run(
            command,
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_LONGEST,
            check=False,
        )
        if done.returncode != status:
            raise TourError(f"exit status {done.returncode} instead of {status}:\n{shown}\n{done.stdout}")
        return self._as_told(done.stdout)

    def _serve(self, command: Command) -> str:
        """Starts a server; its first line says that it listens."""
        really = shlex.split(self._really(command.text), comments=True)
        if "--port" not in really:
            really += ["--port", str(self._port)]
        with tempfile.TemporaryFile("w+") as log:
            server = subprocess.Popen(really, cwd=self._folder, env=self._environment, stdout=log, stderr=log)
            self._servers.append(server)
            deadline = time.monotonic() + _START
            while time.monotonic() < deadline and server.poll() is None:
                log.seek(0)
                if said := [line for line in log.readlines() if "is served at" in line]:
                    return self._as_told(said[0])
                time.sleep(0.1)
            log.seek(0)
            raise TourError(f"the server did not start: {log.read()}")

    def _really(self, text: str) -> str:
        """The text with the port that really listens; a client without an address means the tour's server too."""
        return text.replace(f":{PORT}", f":{self._port}").replace("Client()", f'Client("{self.url}")')

    def _as_told(self, output: str) -> str:
        """Output without what belongs to this machine."""
        output = output.replace(f":{self._port}", f":{PORT}")
        for place in (f"{self._folder}/", f"{ROOT}/"):
            output = output.replace(place, "")
        return re.sub(r"(http://127\.0\.0\.1):\d{4,5}\b", rf"\1:{PORT}", output)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
