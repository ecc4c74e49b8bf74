"""Connections that break, swallow or repeat: one part, and the other attempt refused."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

import pytest

from helios_batch.queue.app import send_unit
from tests.queue.test_kills import wait_for_a_holder
from tests.support.fleet import Fleet, child_of, wait_for
from tests.support.proxy import Proxy


@pytest.fixture
def proxy(fleet: Fleet) -> Iterator[Proxy]:
    """A proxy before the fleet's Redis."""
    with Proxy(fleet.redis.port) as found:
        yield found


def through(proxy: Proxy, fleet: Fleet) -> str:
    """Return the URL of the fleet's Redis by way of the proxy."""
    parts = urlsplit(fleet.redis.url)
    user = parts.netloc.rpartition("@")[0]
    return urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{proxy.port}"))


def test_a_duplicate_message_is_refused(fleet: Fleet) -> None:
    """While a worker has a shard, another one that is sent it too acknowledges and leaves."""
    job_id = fleet.submit(fleet.spec(rows=4, per_shard=4))
    fleet.worker(HELIOS_STUB_SECONDS="1")
    unit = str(wait_for_a_holder(fleet, job_id)["unit"])
    fleet.worker()
    for _ in range(3):
        send_unit(fleet.settings, job_id, unit, "shards")
    wait_for(lambda: fleet.state(job_id).counters["duplicates_refused"] == 3, "three refusals")
    fleet.wait_for_status(job_id, "done")
    fleet.check_whole(4)
    published = [event for event in fleet.jobs.events(job_id) if event["kind"] == "published"]
    assert len(published) == 1


def test_connections_cut_again_and_again(fleet: Fleet, proxy: Proxy) -> None:
    """Two workers whose connections break in the middle of shards: each row once."""
    job_id = fleet.submit(fleet.spec(rows=400, per_shard=10))
    for _ in range(2):
        fleet.worker(HELIOS_REDIS_URL=through(proxy, fleet), HELIOS_STUB_SECONDS="0.01")
    for cuts in range(12):
        wait_for(lambda n=cuts: len(fleet.parts()) > 3 * n, "progress between two cuts")
        proxy.cut()
    fleet.wait_for_status(job_id, "done")
    fleet.check_whole(400)
    assert all(row["error"] is None for row in fleet.rows())


def test_a_black_hole_longer_than_the_lease(fleet: Fleet, proxy: Proxy) -> None:
    """A worker that is cut off loses its shard to another one; healed, it is refused."""
    job_id = fleet.submit(fleet.spec(rows=8, per_shard=8))
    slow = {"HELIOS_REDIS_URL": through(proxy, fleet), "HELIOS_STUB_SECONDS": "0.4"}
    first = fleet.worker(**slow)
    wait_for_a_holder(fleet, job_id)
    proxy.swallow()
    fleet.worker()
    fleet.wait_for_status(job_id, "done")
    written = fleet.parts()[0].stat().st_ino
    proxy.heal()
    wait_for(lambda: fleet.state(job_id).counters["fenced"], "the old attempt to be refused")
    fleet.check_whole(8)
    assert fleet.parts()[0].stat().st_ino == written
    assert child_of(first) is not None, "being cut off ends no worker"
    # and it works again
    again = fleet.submit(fleet.spec(rows=8, per_shard=4, name="again"))
    fleet.wait_for_status(again, "done")


def test_a_shard_longer_than_the_visibility_timeout(fleet: Fleet) -> None:
    """The broker delivers the message a second time while the shard runs: one output."""
    job_id = fleet.submit(fleet.spec(rows=4, per_shard=4))
    early = {"HELIOS_STUB_VISIBILITY": "1", "HELIOS_STUB_SECONDS": "2"}
    fleet.worker(**early)
    wait_for_a_holder(fleet, job_id)
    fleet.worker(**early)
    wait_for(lambda: fleet.state(job_id).counters["duplicates_refused"], "a second delivery")
    fleet.wait_for_status(job_id, "done")
    fleet.check_whole(4)


@pytest.mark.parametrize("offset", ["3600", "-3600"])
def test_a_clock_that_is_off_by_an_hour(fleet: Fleet, offset: str) -> None:
    """Leases hold whatever a worker's wall clock says: no shard is run twice or lost."""
    job_id = fleet.submit(fleet.spec(rows=48, per_shard=4))
    slow = {"HELIOS_STUB_SECONDS": "0.03"}
    fleet.worker(HELIOS_STUB_CLOCK=offset, **slow)
    fleet.worker(**slow)
    fleet.wait_for_status(job_id, "done")
    fleet.check_whole(48)
    kinds = [event["kind"] for event in fleet.jobs.events(job_id)]
    assert kinds.count("published") == 12
    assert not {"lease_expired", "fenced", "died"} & set(kinds)
