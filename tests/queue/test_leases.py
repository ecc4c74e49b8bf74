"""Leases on a real Redis, without workers."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from helios_batch.errors import CommitRefused
from helios_batch.queue.jobs import JobTable, QueuedJob
from helios_batch.queue.keeper import LeaseKeeper
from helios_batch.queue.leases import SURVEY, Holder, Lease, LeaseTable
from helios_batch.totals import Totals
from tests.support.fleet import wait_for

JOB = "0123456789abcdef"
ONE = Holder("one@here", "boot-1", "11")
TWO = Holder("two@there", "boot-2", "22")


@pytest.fixture
def leases(jobs: JobTable, tmp_path: Path) -> LeaseTable:
    """Leases of 0.3 seconds on a running job of 100 shards."""
    jobs.submit(QueuedJob(JOB, "job", "f", {}, str(tmp_path / "out"), 400, 100))
    jobs.set_status(JOB, "running", ("queued",))
    return LeaseTable(jobs.client, jobs.keys, 0.3)


def claim(leases: LeaseTable, holder: Holder, unit: str = "7") -> Lease:
    """Claim a unit that must be free."""
    lease = leases.claim(JOB, unit, "shards", holder)
    assert isinstance(lease, Lease), lease
    return lease


def test_a_live_lease_is_respected(leases: LeaseTable, jobs: JobTable) -> None:
    """A second worker is refused and counted; another shard is free."""
    first = claim(leases, ONE)
    assert leases.claim(JOB, "7", "shards", TWO) == "leased"
    assert claim(leases, TWO, "8").token > first.token
    state = jobs.get(JOB)
    assert state is not None
    assert state.counters["duplicates_refused"] == 1


def test_an_expired_lease_is_fenced(leases: LeaseTable, jobs: JobTable) -> None:
    """After its time another worker has it; the old token neither renews nor releases."""
    old = claim(leases, ONE)
    key = jobs.keys.job(JOB).lease("7")
    wait_for(lambda: not jobs.client.exists(key), "the lease to run out")
    new = claim(leases, TWO)
    assert int(new.token) > int(old.token)
    assert leases.renew(old) == "lost"
    assert leases.release(old, "handed_back") == -1
    assert leases.renew(new) == "held"


def test_tokens_grow_over_a_wiped_redis(leases: LeaseTable, jobs: JobTable, tmp_path: Path) -> None:
    """A token from before `FLUSHALL` is never given out again."""
    old = claim(leases, ONE)
    jobs.client.flushall()
    assert leases.renew(old) == "lost"
    jobs.submit(QueuedJob(JOB, "job", "f", {}, str(tmp_path / "out"), 400, 100))
    jobs.set_status(JOB, "running", ("queued",))
    assert int(claim(leases, ONE).token) > int(old.token)


def test_a_dead_process_is_replaced_at_once(leases: LeaseTable) -> None:
    """The same worker's next process takes over without waiting; the death is held against rows
    only once they ran."""
    lease = claim(leases, ONE)
    again = claim(leases, Holder("one@here", "boot-1", "12"))
    assert (again.deaths, again.failures) == (0, 1)
    leases.begin(again)
    third = claim(leases, Holder("one@here", "boot-1", "13"))
    assert (third.deaths, third.failures) == (1, 1)
    leases.forgive(again)
    leases.release(third, "handed_back")
    assert claim(leases, TWO).deaths == 0
    assert leases.renew(lease) == "lost"


def test_a_pause_is_kept(leases: LeaseTable) -> None:
    """A unit that has failed is not claimed before it is due, whatever messages come back."""
    lease = claim(leases, ONE)
    assert leases.release(lease, "died", 0.2) == 1
    assert leases.claim(JOB, "7", "shards", TWO) == "waiting"
    time.sleep(0.25)
    second = claim(leases, TWO)
    leases.begin(second)
    assert leases.release(second, "died", 60) == 1
    third = claim(leases, ONE)
    assert (third.deaths, third.failures) == (1, 1)


def test_only_what_is_there_can_be_claimed(leases: LeaseTable, jobs: JobTable) -> None:
    """Unknown jobs and shards, finished shards and stopped jobs give no lease."""
    assert leases.claim("f" * 16, "0", "shards", ONE) == "unknown"
    assert leases.claim(JOB, "100", "shards", ONE) == "unknown"
    assert leases.complete(claim(leases, ONE), Totals(rows=4))
    assert leases.claim(JOB, "7", "shards", TWO) == "done"
    held = claim(leases, ONE, "9")
    jobs.set_status(JOB, "paused", ("running",))
    assert leases.claim(JOB, "8", "shards", TWO) == "paused"
    assert leases.renew(held) == "held"
    jobs.set_status(JOB, "cancelled", ("paused",))
    assert leases.claim(JOB, "8", "shards", TWO) == "cancelled"
    assert leases.renew(held) == "cancelled"


def test_completing_twice_counts_once(leases: LeaseTable, jobs: JobTable) -> None:
    """Whoever tells that a part is published, its rows are counted once."""
    lease = claim(leases, ONE)
    assert leases.complete(lease, Totals(rows=4))
    assert not leases.complete(lease, Totals(rows=4))
    state = jobs.get(JOB)
    assert state is not None
    assert (state.done_shards, state.counters["rows_done"]) == (1, 4)


def test_a_keeper_keeps(leases: LeaseTable) -> None:
    """A kept lease outlives its time; one that is not kept does not."""
    lease = claim(leases, ONE)
    with LeaseKeeper(leases, lease) as keeper:
        end = time.monotonic() + 0.9
        while time.monotonic() < end:
            assert leases.claim(JOB, "7", "shards", TWO) == "leased"
            time.sleep(0.05)
        keeper.confirm()
    wait_for(lambda: isinstance(leases.claim(JOB, "7", "shards", TWO), Lease), "a free lease")
    with pytest.raises(CommitRefused, match="lease is lost"):
        keeper.confirm()


def test_a_survey_is_overtaken_by_a_cancel(leases: LeaseTable, jobs: JobTable) -> None:
    """What a survey found counts only while the job is alive and the lease its own."""
    survey = claim(leases, ONE, SURVEY)
    jobs.set_status(JOB, "cancelled", ("running",))
    assert not leases.surveyed(survey, "done", list(range(100)), Totals())
    state = jobs.get(JOB)
    assert state is not None
    assert state.status == "cancelled"
