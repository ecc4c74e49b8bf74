"""Connections to Redis, and its errors in the package's own words."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.connection import parse_url
from redis.retry import Retry

from helios_batch.errors import QueueError
from helios_batch.queue.settings import QueueSettings

SOCKET_TIMEOUT = 5.0
"""Seconds that a silent Redis is waited for."""


def keepalive_options() -> dict[int, int]:
    """TCP keepalive that finds a dead peer in about half a minute, where the system offers it."""
    wanted = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
    return {getattr(socket, key): value for key, value in wanted.items() if hasattr(socket, key)}


def connect(settings: QueueSettings, *, retries: int = 2) -> redis.Redis:
    """Return a client; nothing is sent yet. Every key and value it returns is text."""
    options: dict[str, object] = {}
    if not settings.url.startswith("unix"):
        options = {"socket_keepalive": True, "socket_keepalive_options": keepalive_options()}
    return redis.Redis.from_url(
        settings.url,
        decode_responses=True,
        encoding_errors="replace",
        socket_timeout=SOCKET_TIMEOUT,
        socket_connect_timeout=SOCKET_TIMEOUT,
        health_check_interval=15,
        retry=Retry(ExponentialBackoff(cap=1.0, base=0.05), retries),
        **options,
    )


class BrokerAddress(NamedTuple):
    """Redis's address as Celery takes it: what the URL's query says stands apart."""

    url: str
    ssl: dict[str, object]
    unix_socket: str


def broker_address(settings: QueueSettings) -> BrokerAddress:
    """Return the address for Celery, which knows neither sockets nor a query such as `connect`'s.

    Certificates are required of a `rediss://` URL unless it says otherwise itself.
    """
    options, parts = parse_url(settings.url), urlsplit(settings.url)
    path = str(options.get("path", ""))
    netloc = parts.netloc.rpartition("@")[0] + "@localhost" if path else parts.netloc
    ssl = {name: value for name, value in options.items() if name.startswith("ssl_")}
    if parts.scheme == "rediss":
        ssl = {"ssl_cert_reqs": "required"} | ssl
    return BrokerAddress(f"redis://{netloc}/{options.get('db', 0)}", ssl, path)


@contextmanager
def redis_errors(settings: QueueSettings) -> Iterator[None]:
    """Turn Redis's errors into `QueueError`, without secrets."""
    try:
        yield
    except redis.AuthenticationError:
        raise QueueError(
            "Redis refused the user or password",
            where=settings.shown_url,
            fix="put them into HELIOS_REDIS_URL: redis://user:password@host:6379/0",
        ) from None
    except (redis.ConnectionError, redis.TimeoutError) as exc:
        raise QueueError(
            f"Redis can't be reached: {_reason(exc)}",
            where=settings.shown_url,
            fix="start Redis, or correct --redis or HELIOS_REDIS_URL",
        ) from None
    except redis.RedisError as exc:
        # a script that is refused memory says so in the text only
        if isinstance(exc, redis.OutOfMemoryError) or "OOM command not allowed" in str(exc):
            raise QueueError(
                "Redis is at its memory limit and takes no writes",
                where=settings.shown_url,
                fix="raise its maxmemory or free memory, then run the same command again",
            ) from None
        raise QueueError(
            f"Redis refused a command: {_reason(exc)}",
            where=settings.shown_url,
            fix="helios-batch needs Redis 6.2 or later and a user that may use its key prefix",
        ) from None


def _reason(exc: Exception) -> str:
    return str(exc).partition("\n")[0][:200]
