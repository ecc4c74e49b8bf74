"""When schedules fire."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_batch.errors import QueueUsageError
from helios_batch.queue.cron import check_cron, due_fire, next_fire

CRONS = st.sampled_from(["* * * * *", "*/7 3 * * *", "0 2 * * *", "30 2 * * 1", "0 0 1 * *"])
ZONES = st.sampled_from(["UTC", "Europe/Zurich", "America/New_York", "Asia/Kolkata"])
MOMENTS = st.datetimes(datetime(2024, 1, 1), datetime(2030, 1, 1)).map(
    lambda moment: moment.replace(tzinfo=UTC)
)


@given(CRONS, ZONES, MOMENTS, st.integers(0, 40 * 86400))
def test_what_is_due_is_the_last_that_was_missed(
    cron: str, zone: str, after: datetime, seconds: int
) -> None:
    """It lies after the last fire and not after now, and there is none between it and now."""
    now = after + timedelta(seconds=seconds)
    due = due_fire(cron, zone, after, now)
    if due is None:
        assert next_fire(cron, zone, after) > now
    else:
        assert after < due <= now
        assert next_fire(cron, zone, due) > now
        assert due_fire(cron, zone, due, now) is None


NIGHTS = st.sampled_from([(3, 29), (10, 25)]).map(lambda day: datetime(2026, *day, tzinfo=UTC))


@given(st.one_of(CRONS, st.integers(0, 59).map("{} 2 * * *".format)), NIGHTS, st.integers(0, 14400))
def test_the_next_is_later_when_clocks_change(cron: str, night: datetime, second: int) -> None:
    """In an hour that a night has twice, or not at all, too."""
    after = night + timedelta(seconds=second)
    assert next_fire(cron, "Europe/Zurich", after) > after
    assert due_fire(cron, "Europe/Zurich", after, after) is None


def test_an_hour_that_a_night_has_twice() -> None:
    """A time in it fires once, also if the schedule is added in the second one."""
    first = datetime(2026, 10, 25, 0, 45, tzinfo=UTC)
    eve = datetime(2026, 10, 24, 12, tzinfo=UTC)
    assert next_fire("45 2 * * *", "Europe/Zurich", eve) == first
    later = datetime(2026, 10, 26, 1, 45, tzinfo=UTC)
    for hours in (0, 1):
        after = first + timedelta(hours=hours, minutes=-15 * hours)
        assert next_fire("45 2 * * *", "Europe/Zurich", after) == later
        assert due_fire("45 2 * * *", "Europe/Zurich", after, later - timedelta(1)) is None


def test_daylight_saving() -> None:
    """A time that a night leaves out is made up for; a local time stays where clocks show it."""
    eve = datetime(2026, 3, 28, 12, tzinfo=UTC)
    assert next_fire("30 2 * * *", "Europe/Zurich", eve) == datetime(2026, 3, 29, 1, tzinfo=UTC)
    summer = next_fire("0 2 * * *", "Europe/Zurich", datetime(2026, 7, 1, tzinfo=UTC))
    winter = next_fire("0 2 * * *", "Europe/Zurich", datetime(2026, 12, 1, tzinfo=UTC))
    assert (summer.hour, winter.hour) == (0, 1)


@pytest.mark.parametrize(
    ("cron", "zone", "problem"),
    [
        ("0 2 * *", "UTC", "no cron expression"),
        ("0 0 2 * * *", "UTC", "no cron expression"),
        ("61 2 * * *", "UTC", "no cron expression"),
        ("0 0 30 2 *", "UTC", "no cron expression"),
        ("0 2 * * *", "Europe/Zuerich", "unknown time zone"),
        ("0 2 * * *", "../etc/passwd", "unknown time zone"),
        ("0 2 * * *", "", "unknown time zone"),
    ],
)
def test_what_is_refused(cron: str, zone: str, problem: str) -> None:
    """A wrong expression or zone says so, and what would be right."""
    with pytest.raises(QueueUsageError, match=problem):
        check_cron(cron, zone)
