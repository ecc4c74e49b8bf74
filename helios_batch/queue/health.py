"""Whether this machine's worker lives: `python -m helios_batch.queue.health`, for containers.

A worker's main process keeps its entry in Redis alive; asked is for an entry of this host.
"""

from __future__ import annotations

import socket
import sys

from helios_batch.errors import HeliosError, QueueError
from helios_batch.queue.connection import connect, redis_errors
from helios_batch.queue.keys import Keys
from helios_batch.queue.settings import QueueSettings


def check(settings: QueueSettings) -> None:
    """Do nothing if a worker lives on this host.

    Raises:
        QueueError: none does, or Redis can't be reached.
    """
    keys, host = Keys(settings.prefix), socket.gethostname()
    with redis_errors(settings), connect(settings, retries=0) as client:
        boots = client.smembers(keys.workers)
        if not any(client.hget(keys.worker(boot), "host") == host for boot in boots):
            raise QueueError(
                "no worker of this host has shown itself",
                where=f"{settings.shown_url}, host {host}",
                fix="read the worker's log; one that starts shows itself within seconds",
            )


if __name__ == "__main__":
    try:
        check(QueueSettings.from_env())
    except HeliosError as exc:
        print(exc, file=sys.stderr)
        sys.exit(1)
