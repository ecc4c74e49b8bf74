"""A queue on this machine alone: an embedded Redis, and workers that are started again."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from helios_batch.errors import QueueUsageError
from helios_batch.queue.embedded import EmbeddedRedis
from helios_batch.queue.relaunch import own_command
from helios_batch.queue.settings import QueueSettings

_LOOK_EVERY = 0.2
_LONGEST_PAUSE = 30.0
_HEALTHY_AFTER = 60.0
_SPARE_SECONDS = 15.0


@dataclass
class _Worker:
    """A worker's process; after each death the pause before the next start is twice as long."""

    name: str
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    due: float = 0.0
    pause: float = 1.0


class LocalCluster:
    """Runs Redis and workers until interrupted; the queue's data stays in the folder.

    Args:
        folder: Redis's data, the processes' logs, and `url` with Redis's URL while it is up.
        workers: how many.
        arguments: options for each worker.
        tell: is given lines for the user; none holds the password.
    """

    def __init__(
        self, folder: Path, workers: int, arguments: list[str], tell: Callable[[str], None]
    ) -> None:
        self._folder, self._arguments, self._tell = folder, arguments, tell
        self._workers = [_Worker(f"worker-{number + 1}") for number in range(workers)]

    def run(self) -> None:
        """Start all, and see to them until Ctrl-C or SIGTERM; a second one ends sooner.

        Raises:
            QueueUsageError: the folder is in use, or can't be.
            QueueError: there is no redis-server here, or it does not start.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with FileLock(self._folder / "lock", timeout=0):
                self._run()
        except Timeout:
            raise QueueUsageError(
                "another helios-batch up uses this folder",
                where=str(self._folder),
                fix=f"use that queue: {self._export}; or give this one another --folder",
            ) from None
        except OSError as exc:
            raise QueueUsageError(
                f"the folder can't be used: {exc}",
                where=str(self._folder),
                fix="give another --folder, or change its permissions",
            ) from None

    @property
    def _export(self) -> str:
        return f'export HELIOS_REDIS_URL="$(cat {shlex.quote(str(self._folder / "url"))})"'

    def _run(self) -> None:
        self._end_leftovers()
        redis = EmbeddedRedis(self._folder / "redis")
        settings = QueueSettings.from_env(redis.url)
        try:
            self._start_redis(redis)
            settings = replace(settings, url=redis.url)
            self._tell(f"Redis listens at {settings.shown_url}; data and logs: {self._folder}")
            self._tell(f"to use this queue in another shell:\n\n  {self._export}\n")
            self._tell("Ctrl-C stops it; the same command goes on with its jobs")
            while True:
                self._look_after(redis)
                time.sleep(_LOOK_EVERY)
        except KeyboardInterrupt:
            self._tell("stopping: workers first, shards under way are finished or handed back")
        finally:
            self._stop(redis, settings.soft_shutdown + _SPARE_SECONDS)

    def _start_redis(self, redis: EmbeddedRedis) -> None:
        redis.start()
        if redis.process is not None:
            self._note("redis", redis.process.pid)
        self._write_secret("url", redis.url)

    def _look_after(self, redis: EmbeddedRedis) -> None:
        if redis.process is not None and redis.process.poll() is not None:
            self._tell("Redis has died and is started again")
            self._start_redis(redis)
        now = time.monotonic()
        for worker in self._workers:
            if worker.process is not None and worker.process.poll() is not None:
                if now - worker.started > _HEALTHY_AFTER:
                    worker.pause = 1.0
                self._tell(
                    f"{worker.name} has died (status {worker.process.returncode}) and is started "
                    f"again in {worker.pause:g} s; its log: {self._folder / worker.name}.log"
                )
                worker.process, worker.due = None, now + worker.pause
                worker.pause = min(2 * worker.pause, _LONGEST_PAUSE)
            if worker.process is None and now >= worker.due:
                self._start_worker(worker, redis.url)

    def _start_worker(self, worker: _Worker, url: str) -> None:
        with (self._folder / f"{worker.name}.log").open("ab") as log:
            # a session of its own: Ctrl-C is for us, who tell the workers before Redis
            worker.process = subprocess.Popen(
                own_command("worker", "--name", worker.name, *self._arguments),
                env=os.environ | {"HELIOS_REDIS_URL": url},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        worker.started = time.monotonic()
        self._note(worker.name, worker.process.pid)

    def _stop(self, redis: EmbeddedRedis, patience: float) -> None:
        processes = [worker.process for worker in self._workers if worker.process is not None]
        try:
            for process in processes:
                process.terminate()
            deadline = time.monotonic() + patience
            for process in processes:
                process.wait(max(0.0, deadline - time.monotonic()))
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            self._tell("workers are killed; their shards are run again later")
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            for process in processes:
                # the session holds the process that computes, too
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            redis.stop()
            for file in (self._folder / "url", *self._folder.glob("*.pid")):
                file.unlink(missing_ok=True)

    def _note(self, name: str, pid: int) -> None:
        with suppress(psutil.NoSuchProcess):
            note = f"{pid} {psutil.Process(pid).create_time()}"
            (self._folder / f"{name}.pid").write_text(note)

    def _write_secret(self, name: str, text: str) -> None:
        file = self._folder / name
        file.unlink(missing_ok=True)
        file.touch(mode=0o600)
        file.write_text(text)

    def _end_leftovers(self) -> None:
        """End what a killed `up` has left running on this folder, workers before Redis."""
        files = sorted(self._folder.glob("*.pid"), key=lambda file: file.stem == "redis")
        for file in files:
            with suppress(psutil.NoSuchProcess, ValueError, IndexError):
                pid, born = file.read_text().split()
                process = psutil.Process(int(pid))
                # pids are used again
                if process.create_time() == float(born):
                    self._tell(f"ending {file.stem}, which an earlier run has left")
                    process.terminate()
                    deadline = time.monotonic() + _SPARE_SECONDS
                    # it is not our child; what nobody reaps stays there as a zombie
                    while process.status() != psutil.STATUS_ZOMBIE:
                        if time.monotonic() > deadline:
                            process.kill()
                        time.sleep(0.05)
            file.unlink(missing_ok=True)
