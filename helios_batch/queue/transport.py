"""Celery's Redis transport, made to survive what others may push into its lists.

kombu parses each popped item as its own envelope, and an item that is none ends the worker. Here
what is not a message of ours is dropped and counted before kombu or Celery act on it.
"""

from __future__ import annotations

import logging
from collections import Counter
from queue import Empty
from typing import Any

from kombu.transport import redis as kombu_redis

from helios_batch.queue.messages import problem_with

refused: Counter[str] = Counter()
"""Messages that this process has dropped, by reason; the housekeeper moves them to Redis."""

_log = logging.getLogger(__name__)


def _refuse(reason: str) -> None:
    refused[reason] += 1
    _log.warning("refused a message: %s", reason)


class Channel(kombu_redis.Channel):  # type: ignore[misc]  # kombu has no types
    """Drops items that are not even JSON; they are popped already."""

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except (ValueError, RecursionError):
            _refuse("the envelope is not JSON")
            raise Empty from None


class Transport(kombu_redis.Transport):  # type: ignore[misc]  # the same
    """Delivers only messages of ours to the task queues; control and events have their own."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str) -> None:
        if not queue.endswith(".pidbox") and not queue.startswith("celeryev"):
            reason = problem_with(message)
            if reason is not None:
                _refuse(reason)
                return
        super()._deliver(message, queue)
