"""When a cron expression fires, in a time zone of its own; daylight saving as cron has it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from helios_batch.errors import QueueUsageError

_FIELDS = 5


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
        if len(cron.split()) != _FIELDS:
            raise CronSimError("a sixth field would be seconds")
        next(CronSim(cron, datetime.now(place)))
    except (CronSimError, StopIteration):
        raise QueueUsageError(
            f"{cron!r:.60} is no cron expression that ever fires",
            where="--cron",
            fix='give five fields: minute, hour, day, month, weekday, such as "0 2 * * *"',
        ) from None


def next_fire(cron: str, zone: str, after: datetime) -> datetime:
    """Return the first fire time after a moment, in UTC."""
    fires = (fire.astimezone(UTC) for fire in CronSim(cron, after.astimezone(ZoneInfo(zone))))
    # in an hour that a night has twice, the simulation steps back into the first of the two
    return next(fire for fire in fires if fire > after)


def due_fire(cron: str, zone: str, after: datetime, now: datetime) -> datetime | None:
    """Return the latest fire time after `after` and not after `now`, in UTC; None if none is due.

    Of several that were missed only the last is due.
    """
    if next_fire(cron, zone, after) > now:
        return None
    # halve the time in question: a schedule asleep for a year may have missed half a million
    end = now
    while end - after > timedelta(seconds=1):
        middle = after + (end - after) / 2
        if next_fire(cron, zone, middle) > now:
            end = middle
        else:
            after = middle
    return next_fire(cron, zone, after)
