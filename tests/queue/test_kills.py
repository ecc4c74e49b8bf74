"""Workers that are killed, stopped and paused: every row once, and nobody holds the device."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from helios_batch.queue.dispatcher import Dispatcher
from tests.support.fleet import Fleet, child_of, kill_tree, signal_child, wait_for

KILLS = 100
SEED = 20261122


def wait_for_a_holder(fleet: Fleet, job_id: str) -> dict[str, object]:
    """Wait until a shard runs, and return who has it."""

    def running() -> dict[str, object] | None:
        holder = fleet.holder(job_id)
        return holder if holder is not None and holder.get("running") else None

    return wait_for(running, "a shard to run")


def test_kill_a_hundred_times(fleet: Fleet) -> None:
    """`kill -9` of main process, pool child, or both: each row once, no process left behind."""
    print(f"seed {SEED}")
    moments = random.Random(SEED)
    calm = {"HELIOS_MAX_DEATHS": "1000", "HELIOS_MAX_FAILURES": "1000"}
    # a shard takes a second, so that the job outlasts the kills
    slow = calm | {"HELIOS_STUB_SECONDS": "0.1"}
    job_id = fleet.submit(fleet.spec(rows=6000, per_shard=10))
    team = [fleet.worker(**slow) for _ in range(2)]

    def hired(team: list[subprocess.Popen[bytes]], index: int) -> subprocess.Popen[bytes]:
        # Celery ends where the child dies before its first message; restarting is a supervisor's
        if team[index].poll() is not None:
            team[index] = fleet.worker(**slow)
        return team[index]

    struck = 0
    for strike in range(KILLS):
        victim = strike % 2
        child = wait_for(lambda v=victim: child_of(hired(team, v)), "the worker's process")
        worker = team[victim]
        wait_for(lambda n=strike: len(fleet.parts()) > n, "progress between two kills")
        time.sleep(moments.uniform(0, 0.05))
        target = moments.choice(["main", "child", "both"])
        struck += fleet.state(job_id).status == "running"
        if target in ("child", "both"):
            signal_child(worker, signal.SIGKILL)
        if target in ("main", "both"):
            worker.kill()
            worker.wait()
            wait_for(lambda c=child: not psutil.pid_exists(c), "the child to follow", 5)
            team[victim] = fleet.worker(**slow)
    assert struck >= KILLS * 0.9, "the job ended before it was killed often enough"
    fleet.stop()
    for _ in range(2):
        fleet.worker(**calm)
    fleet.wait_for_status(job_id, "done", seconds=120)
    fleet.check_whole(6000)
    assert all(row["error"] is None for row in fleet.rows())


def test_a_popped_message_dies_with_its_worker(fleet: Fleet) -> None:
    """A message that Redis has handed to a stopped worker, killed then, is sent again in time."""
    first = fleet.worker(HELIOS_STUB_BRPOP="60")
    log = fleet.folder / "worker-0.log"
    wait_for(lambda: "ready." in log.read_text(), "the worker to be ready")
    wait_for(
        lambda: "b" in "".join(each["flags"] for each in fleet.jobs.client.client_list()),
        "the worker to wait for messages",
    )
    first.send_signal(signal.SIGSTOP)
    job_id = fleet.queue(fleet.spec(rows=8))
    Dispatcher(fleet.settings, fleet.jobs).fill()
    queue = f"{fleet.jobs.keys.broker}shards"
    wait_for(lambda: fleet.jobs.client.llen(queue) == 0, "the stopped worker to be given it", 5)
    kill_tree(first)
    fleet.worker()
    fleet.wait_for_status(job_id, "done", seconds=15)
    fleet.check_whole(8)
    assert fleet.state(job_id).counters["republished"] >= 1


@pytest.mark.parametrize("target", ["child", "main"])
def test_a_paused_process_is_fenced(fleet: Fleet, target: str) -> None:
    """SIGSTOP longer than the lease, then SIGCONT: the shard is another's, and stays whole."""
    job_id = fleet.submit(fleet.spec(rows=8, per_shard=4))
    first = fleet.worker(HELIOS_STUB_SECONDS="0.3")
    holder = wait_for_a_holder(fleet, job_id)
    child, unit = int(str(holder["pid"])), str(holder["unit"])
    stopped = [child, first.pid] if target == "main" else [child]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    fleet.worker()
    fleet.wait_for_status(job_id, "done")
    written = {part: part.stat().st_mtime_ns for part in fleet.parts()}
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: fleet.state(job_id).counters["fenced"], "the old attempt to be refused")
    fleet.check_whole(8)
    assert {part: part.stat().st_mtime_ns for part in fleet.parts()} == written
    assert unit in {event.get("unit") for event in fleet.jobs.events(job_id)}


def test_a_process_paused_between_yes_and_commit(fleet: Fleet) -> None:
    """The lease was confirmed, the file was about to get its name: it gets none any more."""
    job_id = fleet.submit(fleet.spec(rows=4, per_shard=4))
    once = str(fleet.folder / "once")
    pause = {"HELIOS_CRASHPOINT": "publish.confirmed:SIGSTOP", "HELIOS_CRASHPOINT_ONCE": once}
    fleet.jobs.client.hset(fleet.jobs.keys.job(job_id).job, "status", "running")
    first = fleet.worker(**pause)
    wait_for(lambda: Path(once).exists(), "the attempt to stop within its commit")
    child = int(str(wait_for(lambda: fleet.holder(job_id), "the stopped attempt")["pid"]))
    assert not fleet.parts()
    fleet.worker()
    fleet.wait_for_status(job_id, "done")
    written = fleet.parts()[0].stat()
    os.kill(child, signal.SIGCONT)
    wait_for(lambda: fleet.state(job_id).counters["fenced"], "the old attempt to be refused")
    assert fleet.parts()[0].stat().st_ino == written.st_ino
    fleet.check_whole(4)
    assert first.poll() is None


@pytest.mark.parametrize("signals", [["SIGTERM"], ["SIGQUIT"], ["SIGINT", "SIGINT"]])
def test_a_told_worker_hands_its_shard_back(fleet: Fleet, signals: list[str]) -> None:
    """SIGTERM, SIGQUIT and two Ctrl-C end a worker soon; another one resumes its shard at once."""
    job_id = fleet.submit(fleet.spec(rows=8, per_shard=4))
    # a lease longer than the test: only a shard handed back can be taken over
    slow = {"HELIOS_STUB_SECONDS": "3", "HELIOS_LEASE_SECONDS": "600"}
    first = fleet.worker(**slow)
    child = int(str(wait_for_a_holder(fleet, job_id)["pid"]))
    for name in signals:
        first.send_signal(signal.Signals[name])
        time.sleep(0.3)
    try:
        first.wait(timeout=20)
    except subprocess.TimeoutExpired:
        pytest.fail("the worker did not end in 20 s; it may take 1 s to hand back")
    assert not psutil.pid_exists(child), "the process that owned the device lives on"
    assert fleet.holder(job_id) is None
    assert not fleet.parts()
    fleet.worker()
    fleet.wait_for_status(job_id, "done", seconds=20)
    fleet.check_whole(8)
    (deaths,) = fleet.jobs.keys.job(job_id).parts("deaths")
    assert not fleet.jobs.client.hgetall(deaths), "a shard handed back counts as no death"


def test_a_worker_finishes_what_is_nearly_done(fleet: Fleet) -> None:
    """Within the time of a soft shutdown the shard is finished, not handed back."""
    job_id = fleet.submit(fleet.spec(rows=4, per_shard=4))
    first = fleet.worker(HELIOS_STUB_SECONDS="0.3", HELIOS_SOFT_SHUTDOWN_SECONDS="30")
    wait_for_a_holder(fleet, job_id)
    first.terminate()
    first.wait(timeout=20)
    assert len(fleet.parts()) == 1
