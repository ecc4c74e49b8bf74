"""Celery's Redis transport, made to survive what others may push into its lists.

kombu parses each popped item as its own envelope, and one that is none ends the worker. Here what
is not a message of ours is dropped and counted before kombu or Celery see it.
"""

from __future__ import annotations

import logging
from collections import Counter
from functools import partial
from typing import Any

import redis
from kombu.transport import redis as kombu_redis

from helios_batch.queue.messages import problem_with_delivery, problem_with_item

refused: Counter[str] = Counter()
"""Messages that this process has dropped, by reason; the housekeeper moves them to Redis."""

_log = logging.getLogger(__name__)
_TCP_ONLY = (
    *("host", "port", "socket_connect_timeout"),
    *("socket_keepalive", "socket_keepalive_options"),
)


def _refuse(reason: str) -> None:
    refused[reason] += 1
    _log.warning("refused a message: %s", reason)


class Client(kombu_redis.PrefixedStrictRedis):  # type: ignore[misc]  # kombu has no types
    """Gives no items but messages of ours; others are popped already, and dropped."""

    def parse_response(self, connection: Any, command_name: str, **options: Any) -> Any:
        """Return a command's answer; of BRPOP, nothing in place of an item that is refused."""
        found = super().parse_response(connection, command_name, **options)
        # lists of replies are read by those who sent commands, never by a worker
        if command_name == "BRPOP" and found and not found[0].endswith(b".pidbox"):
            reason = problem_with_item(found[1])
            if reason is not None:
                _refuse(reason)
                return None
        return found


class Channel(kombu_redis.Channel):  # type: ignore[misc]  # the same
    """Connects as the URL says, and takes in only what can be taken in.

    `unix_socket` is a transport option: the path of Redis's socket, in place of host and port.
    """

    unix_socket = ""
    from_transport_options = (*kombu_redis.Channel.from_transport_options, "unix_socket")

    def _get_client(self) -> Any:
        return partial(Client, global_keyprefix=self.global_keyprefix)

    def _connparams(self, asynchronous: bool = False) -> Any:
        if not self.unix_socket:
            return super()._connparams(asynchronous)
        self.connection_class = redis.UnixDomainSocketConnection
        found = super()._connparams(asynchronous)
        kept = {key: value for key, value in found.items() if key not in _TCP_ONLY}
        return kept | {"path": self.unix_socket}

    def _receive_one(self, c: Any) -> Any:
        try:
            return super()._receive_one(c)
        except (RecursionError, ArithmeticError, LookupError, AttributeError) as exc:
            _refuse(f"a broadcast that is no message: {type(exc).__name__}")
            return None

    def _deliver_fanout_message(self, message: Any, exchange: str) -> Any:
        reason = problem_with_delivery(message)
        if reason is not None:
            _refuse(f"a broadcast: {reason}")
            return None
        return super()._deliver_fanout_message(message, exchange)


class Transport(kombu_redis.Transport):  # type: ignore[misc]  # the same
    """The Redis transport with these channels."""

    Channel = Channel
