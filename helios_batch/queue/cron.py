"""When a cron expression fires, in a time zone of its own; daylight saving as cron has it."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import takewhile
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from helios_batch.errors import QueueUsageError


def check_cron(cron: str, zone: str) -> None:
    """Check an expression and a zone.

    Raises:
        QueueUsageError: one of them is not usable, or the expression never fires.
    """
    try:
        place = ZoneInfo(zone)
    except (KeyError, ValueError, OSError):
        raise QueueUsageError(
            f"unknown time zone {zone!r:.60}",
            where="--tz",
            fix="give a name of the IANA database, such as UTC or Europe/Zurich",
        ) from None
    try:
        next(CronSim(cron, datetime.now(place)))
    except (CronSimError, StopIteration):
        raise QueueUsageError(
            f"{cron!r:.60} is no cron expression that ever fires",
            where="--cron",
            fix='give five fields: minute, hour, day, month, weekday, such as "0 2 * * *"',
        ) from None


def next_fire(cron: str, zone: str, after: datetime) -> datetime:
    """Return the first fire time after a moment, in UTC."""
    return next(CronSim(cron, after.astimezone(ZoneInfo(zone)))).astimezone(UTC)


def due_fire(cron: str, zone: str, after: datetime, now: datetime) -> datetime | None:
    """Return the latest fire time after `after` and not after `now`, in UTC; None if none is due.

    Of several that were missed only the last is due.
    """
    first = next_fire(cron, zone, after)
    if first > now:
        return None
    # look from the end: a schedule that was asleep for a year may have missed half a million
    end = now.astimezone(ZoneInfo(zone))
    backwards = CronSim(cron, end.replace(microsecond=0), reverse=True)
    exact = list(takewhile(lambda fire: fire <= now, CronSim(cron, _just_before(end))))
    last = exact[-1] if exact else next(backwards)
    return max(first, last.astimezone(UTC))


def _just_before(moment: datetime) -> datetime:
    """Return the end of the minute before: a simulation looks at times after its start."""
    return datetime.fromtimestamp(moment.timestamp() // 60 * 60 - 1, moment.tzinfo)
