"""A worker: Celery's main process, which owns nothing, and one process that owns the device."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import redis
from celery.bootsteps import StartStopStep
from celery.signals import worker_shutting_down
from celery.worker.components import Pool

from helios_batch.queue.app import make_app
from helios_batch.queue.beat import Beat
from helios_batch.queue.connection import connect, redis_errors
from helios_batch.queue.housekeeper import Housekeeper
from helios_batch.queue.jobs import JobTable
from helios_batch.queue.keys import Keys
from helios_batch.queue.leases import LeaseTable, release_all
from helios_batch.queue.metrics import serve_metrics
from helios_batch.queue.process import HAND_BACK_SIGNAL, WorkerIdentity
from helios_batch.queue.settings import DEFAULT_QUEUE, QueueSettings

_log = logging.getLogger(__name__)
_RESPAWN_SECONDS = 0.3


class Respawn(StartStopStep):  # type: ignore[misc]  # Celery has no types
    """Looks for a dead process often: Celery may overlook its end, and look again 5 s later."""

    requires = (Pool,)

    def start(self, worker: Any) -> None:
        """Begin to look."""
        worker.hub.call_repeatedly(_RESPAWN_SECONDS, worker.pool.maintain_pool)


@dataclass(frozen=True)
class WorkerOptions:
    """A worker's own options; None leaves a resource to the job's spec. Memory is in bytes."""

    name: str | None = None
    queues: tuple[str, ...] = (DEFAULT_QUEUE,)
    device: str | None = None
    memory: int | None = None
    threads: int | None = None
    log_level: str = "INFO"
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None


def run_worker(settings: QueueSettings, options: WorkerOptions) -> int:
    """Run a worker until it is told to stop; return its exit status.

    On SIGTERM or Ctrl-C the shard under way may finish within `settings.soft_shutdown` seconds,
    then it is handed back; a second Ctrl-C or SIGQUIT ends sooner. No unfinished shard counts as
    done, and its lease is given up.

    Raises:
        QueueError: Redis can't be reached at the start.
        QueueUsageError: the metrics' address can't be had.
    """
    client = connect(settings)
    with redis_errors(settings):
        since, _ = client.time()
    boot, host = secrets.token_hex(8), socket.gethostname()
    name = f"{options.name or f'helios-{os.getpid()}'}@{host}"
    identity = WorkerIdentity(
        name, boot, os.getpid(), options.device, options.memory, options.threads
    )
    identity.export()
    app = make_app(settings)
    app.steps["worker"].add(Respawn)
    worker = app.Worker(
        hostname=name,
        pool="prefork",
        concurrency=1,
        queues=list(options.queues),
        loglevel=options.log_level,
        # workers know of each other through their entries in Redis
        without_mingle=True,
        without_gossip=True,
    )
    facts: dict[str, str | int] = {
        "worker": name,
        "host": host,
        "pid": os.getpid(),
        "queues": ",".join(options.queues),
        "since": since,
    }
    jobs = JobTable(client, Keys(settings.prefix))
    if options.metrics_port is not None:
        serve_metrics(settings, boot, options.metrics_host, options.metrics_port)
    beat = Beat(settings, jobs)
    housekeeper = Housekeeper(settings, jobs, boot, facts, (beat.tick,))
    on_shutdown = _hand_back_after(settings.soft_shutdown, worker)
    worker_shutting_down.connect(on_shutdown)
    housekeeper.start()
    try:
        worker.start()
    finally:
        worker_shutting_down.disconnect(on_shutdown)
        for pid in _pool_pids(worker):
            _signal(pid, signal.SIGKILL)
        housekeeper.stop()
        beat.stop()
        try:
            release_all(LeaseTable(client, jobs.keys, settings.lease), jobs, boot)
        except redis.RedisError as exc:
            _log.warning("the lease runs out by itself, as Redis is away: %s", exc)
    return int(worker.exitcode or 0)


def _hand_back_after(seconds: float, worker: Any) -> Callable[..., None]:
    def hand_back() -> None:
        for pid in _pool_pids(worker):
            _signal(pid, HAND_BACK_SIGNAL)

    def on_shutdown(**_: object) -> None:
        timer = threading.Timer(seconds, hand_back)
        timer.daemon = True
        timer.start()

    return on_shutdown


def _pool_pids(worker: Any) -> list[int]:
    pool = getattr(getattr(worker, "pool", None), "_pool", None)
    return [process.pid for process in getattr(pool, "_pool", []) if process.pid]


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
