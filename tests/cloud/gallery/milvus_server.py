"""A real Milvus server for tests: the package ``milvus`` of an environment of its own (make test-milvus makes it)."""

import os
import select
import signal
import socket
import subprocess
from pathlib import Path
from typing import Self

#: Who stops reading its standard input stops the server; a shorter time tick, for every strict read waits for one.
#: The wheel takes a port for used that a killed server's connections still wait at, and goes to another one, unless told.
_RUN = """
import milvus, socket, sys

class Reusing(socket.socket):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

socket.socket = Reusing
server = milvus.MilvusServer()
server.set_base_dir(sys.argv[1])
server.listen_port = int(sys.argv[2])
server.config.set("proxy.timeTickInterval", 20)
server.start()
print("up", flush=True)
sys.stdin.read()
server.stop()
"""


class MilvusServer:
    """A server with its data in ``folder``; a context manager."""

    def __init__(self, python: str, folder: Path) -> None:
        self._command, self._folder = python, folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        # A session of its own, so that the server's own child can be found and killed with it.
        self._process = subprocess.Popen(
            [self._command, "-c", _RUN, str(self._folder), str(self._port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], 120)
        if not ready or "up" not in self._process.stdout.readline():
            self.kill()
            raise AssertionError("the Milvus server does not start; only one can run at a time")

    def kill(self) -> None:
        """As a power cut does."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(30)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *failure: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
