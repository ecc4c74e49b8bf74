"""The process that owns the device: what it sets up once, and how it learns that it must end."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import asdict, dataclass
from functools import cache

from helios_batch.queue.connection import connect
from helios_batch.queue.dispatcher import Dispatcher
from helios_batch.queue.engines import Overrides
from helios_batch.queue.executor import UnitExecutor
from helios_batch.queue.jobs import JobTable
from helios_batch.queue.keys import Keys
from helios_batch.queue.leases import Holder
from helios_batch.queue.settings import QueueSettings

_VARIABLE = "HELIOS_WORKER"
HAND_BACK_SIGNAL = signal.SIGUSR2
"""Tells the process to give its unit back at the next step."""


@dataclass(frozen=True)
class WorkerIdentity:
    """What the worker's process tells the one that computes: who they are, and the options."""

    worker: str
    boot: str
    parent: int
    device: str | None
    memory: int | None
    threads: int | None

    def export(self) -> None:
        """Leave this to the processes started from here."""
        os.environ[_VARIABLE] = json.dumps(asdict(self))

    @classmethod
    def inherited(cls) -> WorkerIdentity:
        """Return what the worker's process has left."""
        return cls(**json.loads(os.environ[_VARIABLE]))


@cache
def executor() -> UnitExecutor:
    """Return this process's executor, made at its first unit."""
    me, settings = WorkerIdentity.inherited(), QueueSettings.from_env()
    threading.Thread(target=_end_with, args=(me.parent,), name="parent", daemon=True).start()
    client = connect(settings)
    jobs = JobTable(client, Keys(settings.prefix))
    holder = Holder(me.worker, me.boot, str(os.getpid()), me.device or "")
    overrides = Overrides(me.device, me.memory, me.threads)
    made = UnitExecutor(settings, jobs, holder, overrides, Dispatcher(settings, jobs).fill)
    signal.signal(HAND_BACK_SIGNAL, lambda *_: made.stop.set())
    return made


def _end_with(parent: int) -> None:
    """End when the worker's process does: a device has one owner."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
