"""How a process finds its queue, and the times that the queue's promises are made of."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit, urlunsplit

from helios_batch.errors import QueueUsageError

DEFAULT_QUEUE = "shards"
_PREFIX = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class QueueSettings:
    """The queue's address, limits and times; every process of one queue has the same.

    `url` may carry user and password and is never shown; `shown_url` is. Times are in seconds:
    a lease ends `lease` after its last renewal; a message not taken within `redelivery` is sent
    again once it is known to be lost; `soft_shutdown` is how long a stopping worker lets its shard
    go on. After `max_deaths` processes lost while its rows ran, a shard is searched for the row to
    blame, and a job is not calibrated any more; after `max_failures` errors, or processes lost
    before, its job fails. While jobs of other models wait, those of one are served for `stretch`
    seconds each. Workers read inputs and models only under `input_roots` and write only under
    `output_roots`: folders, or prefixes of URLs.
    """

    url: str
    prefix: str = "helios"
    lease: float = 30.0
    redelivery: float = 10.0
    tick: float = 0.5
    soft_shutdown: float = 20.0
    max_deaths: int = 3
    max_failures: int = 5
    stretch: float = 60.0
    input_roots: tuple[str, ...] = field(default_factory=lambda: (str(Path.cwd()),))
    output_roots: tuple[str, ...] = field(default_factory=lambda: (str(Path.cwd()),))

    @classmethod
    def from_env(cls, url: str | None = None) -> Self:
        """Read the settings from `HELIOS_*` variables; `url` goes before `HELIOS_REDIS_URL`.

        Raises:
            QueueUsageError: no URL is given, or a value makes no sense.
        """
        found = url or os.environ.get("HELIOS_REDIS_URL", "")
        scheme = found.split("://", 1)[0] if "://" in found else ""
        if scheme not in ("redis", "rediss", "unix"):
            raise QueueUsageError(
                "no Redis is named" if not found else "the Redis URL has an unknown scheme",
                where="--redis, HELIOS_REDIS_URL",
                fix="give redis://user:password@host:6379/0, or rediss:// for TLS; to try the "
                "queue on this machine alone, run helios-batch up",
            )
        _check_url(found)
        prefix = os.environ.get("HELIOS_REDIS_PREFIX", "helios")
        if not _PREFIX.fullmatch(prefix):
            raise QueueUsageError(
                f"the key prefix {prefix!r:.80} is not usable",
                where="HELIOS_REDIS_PREFIX",
                fix="use up to 64 letters, digits, and any of . _ -",
            )
        return cls(
            url=found,
            prefix=prefix,
            lease=_number("HELIOS_LEASE_SECONDS", 30.0, 0.5),
            redelivery=_number("HELIOS_REDELIVERY_SECONDS", 10.0, 0.1),
            tick=_number("HELIOS_TICK_SECONDS", 0.5, 0.02),
            soft_shutdown=_number("HELIOS_SOFT_SHUTDOWN_SECONDS", 20.0, 0.0),
            max_deaths=int(_number("HELIOS_MAX_DEATHS", 3, 1)),
            max_failures=int(_number("HELIOS_MAX_FAILURES", 5, 1)),
            stretch=_number("HELIOS_STRETCH_SECONDS", 60.0, 0.0),
            input_roots=_roots("HELIOS_INPUT_ROOTS"),
            output_roots=_roots("HELIOS_OUTPUT_ROOTS"),
        )

    @property
    def shown_url(self) -> str:
        """The URL without user, password and query."""
        return without_secrets(self.url)


def without_secrets(url: str) -> str:
    """Return a URL without user, password, query and fragment."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def _check_url(url: str) -> None:
    from redis import ConnectionPool

    try:
        # an unquoted / ? or # in the password would end the address, and the rest would be shown
        if any("@" in part for part in re.split("[/?#]", url.partition("://")[2])[1:]):
            raise ValueError
        ConnectionPool.from_url(url).make_connection()
    except (ValueError, TypeError):
        # the error's own text may quote a password
        raise QueueUsageError(
            "the Redis URL is malformed, or its query has an option that is not known",
            where="--redis, HELIOS_REDIS_URL",
            fix="give redis://user:password@host:6379/0, with reserved characters of user and "
            "password written as %XX",
        ) from None


def _number(name: str, default: float, least: float) -> float:
    text = os.environ.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if not least <= value < 1e9:
        raise QueueUsageError(
            f"{text!r:.40} is not a number of at least {least:g}",
            where=name,
            fix=f"set it to a number, or unset it for {default:g}",
        )
    return value


def _roots(name: str) -> tuple[str, ...]:
    parts = [part.strip() for part in os.environ.get(name, "").split(",") if part.strip()]
    return tuple(
        part if "://" in part else str(Path(part).expanduser().resolve())
        for part in parts or [str(Path.cwd())]
    )
