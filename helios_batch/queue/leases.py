"""Leases: at most one attempt at a unit may publish, as Redis's own clock and counter tell.

A unit is a shard's number, or `SURVEY`: reading the job's output folder, which begins and ends a
job. The fencing token of a lease is larger than any before it, a wiped Redis included.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Literal

import redis

from helios_batch.queue.jobs import JobTable
from helios_batch.queue.keys import Keys
from helios_batch.queue.scripts import Scripts
from helios_batch.records import ErrorCode
from helios_batch.totals import Totals

SURVEY = "survey"
_CALIBRATION = "calibration:"


@dataclass(frozen=True)
class Holder:
    """Who holds leases: a worker (its name and boot id) and the process that computes."""

    worker: str
    boot: str
    pid: str
    device: str = ""


@dataclass
class Lease:
    """A claimed unit.

    `deaths` counts the processes that were lost while its rows ran, `failures` errors and processes
    lost before; `suspicion` is what is known of rows that kill: JSON, or empty. `running` is what
    the loss of this process would count against once rows run, as `LeaseTable.begin` sets it.
    """

    job_id: str
    unit: str
    token: str
    deaths: int = 0
    failures: int = 0
    suspicion: str = ""
    running: str = ""


class LeaseTable:
    """Claims, renews and ends leases of `seconds` each."""

    def __init__(self, client: redis.Redis, keys: Keys, seconds: float) -> None:
        self.client, self._keys, self._scripts = client, keys, Scripts(client)
        self.milliseconds = round(seconds * 1000)

    def claim(self, job_id: str, unit: str, queue: str, holder: Holder) -> Lease | str:
        """Return the lease, or why there is none.

        That is `leased`, `waiting` (for the end of its pause), `done`, `unknown`, or a job status.
        """
        keys = self._keys.job(job_id)
        found = self._scripts.run(
            "claim",
            [
                keys.job,
                keys.lease(unit),
                *keys.parts("holders", "done", "open", "deaths", "suspects"),
                self._keys.fence,
                self._keys.watermark(queue),
                *keys.parts("events", "again", "failures"),
            ],
            *(unit, holder.boot, holder.pid, json.dumps(asdict(holder)), self.milliseconds),
        )
        if found[0] != "claimed":
            return str(found[0])
        _, token, deaths, failures, suspicion = found
        return Lease(job_id, unit, token, int(deaths), int(failures), suspicion)

    def begin(self, lease: Lease) -> None:
        """Note that the unit's rows are about to run: a lost process counts against them."""
        self._begin(lease, lease.unit)

    def begin_calibration(self, lease: Lease, rounds: int) -> None:
        """Note that calibration's rows are about to run, after so many lost rounds."""
        self._begin(lease, f"{_CALIBRATION}{rounds}")

    def lost_calibrations(self, job_id: str) -> int:
        """Return how many rounds of a job's calibration have lost their processes.

        All that calibrate at once are in one round: where a row kills them, or a cluster is
        stopped, they tell nothing that one of them would not.
        """
        (deaths,) = self._keys.job(job_id).parts("deaths")
        rounds = 0
        while self.client.hexists(deaths, f"{_CALIBRATION}{rounds}"):
            rounds += 1
        return rounds

    def _begin(self, lease: Lease, running: str) -> None:
        names = self._keys.job(lease.job_id).parts("holders")
        if self._scripts.run("begin", names, lease.unit, lease.token, running):
            lease.running = running

    def renew(self, lease: Lease) -> str:
        """Return `held`, `lost`, or the status that stopped the job."""
        keys = self._keys.job(lease.job_id)
        answer: str = self._scripts.run(
            "renew", [keys.job, keys.lease(lease.unit)], lease.token, self.milliseconds
        )
        return answer

    def complete(self, lease: Lease, totals: Totals) -> bool:
        """Record a published part; return whether it was news."""
        keys = self._keys.job(lease.job_id)
        counts = {
            "rows_done": totals.rows,
            "failed_rows": totals.failed_rows,
            "prompt_tokens": totals.prompt_tokens,
            "completion_tokens": totals.completion_tokens,
            "quarantined": totals.errors[ErrorCode.QUARANTINED.value],
        }
        news = self._scripts.run(
            "complete",
            [
                keys.job,
                keys.lease(lease.unit),
                *keys.parts("holders", "done", "open", "again", "deaths", "failures", "suspects"),
                *keys.parts("published"),
            ],
            *(lease.unit, lease.token, totals.rows, json.dumps(dict(totals.errors))),
            *(item for pair in counts.items() for item in pair),
        )
        return bool(news)

    def release(
        self, lease: Lease, why: Literal["handed_back", "failed", "died"], delay: float = 0.0
    ) -> int:
        """Give a unit back, due again after `delay` seconds, or at once if its rows killed it.

        Returns how often it has failed, or -1 if the lease was not held any more.
        """
        keys = self._keys.job(lease.job_id)
        names = keys.parts("holders", "open", "again", "failures", "deaths")
        arguments = (lease.unit, lease.token, why, round(delay * 1000))
        return int(self._scripts.run("release", [keys.lease(lease.unit), *names], *arguments))

    def forgive(self, lease: Lease) -> None:
        """Take back a death: the process that lost this lease lives, it was only cut off."""
        deaths, failures = self._keys.job(lease.job_id).parts("deaths", "failures")
        counts = deaths if lease.running else failures
        field = lease.running or lease.unit
        if int(self.client.hincrby(counts, field, -1)) <= 0:
            self.client.hdel(counts, field)

    def suspect(self, lease: Lease, suspicion: str) -> None:
        """Keep what is known about rows that kill, before the next attempt risks it."""
        (suspects,) = self._keys.job(lease.job_id).parts("suspects")
        self.client.hset(suspects, lease.unit, suspicion)

    def surveyed(
        self, lease: Lease, status: Literal["running", "done"], finished: list[int], totals: Totals
    ) -> bool:
        """Take over the finished shards that a survey found; return False if it came too late."""
        keys = self._keys.job(lease.job_id)
        bitmap = bytearray(max(finished, default=-1) // 8 + 1)
        for index in finished:
            bitmap[index // 8] |= 0x80 >> index % 8
        fields = {
            "rows_done": totals.rows,
            "failed_rows": totals.failed_rows,
            "prompt_tokens": totals.prompt_tokens,
            "completion_tokens": totals.completion_tokens,
        } | {f"error:{code}": rows for code, rows in totals.errors.items()}
        if status == "running":
            fields |= {"rows_before": totals.rows, "tokens_before": totals.completion_tokens}
        answer = self._scripts.run(
            "survey",
            [
                keys.job,
                keys.lease(lease.unit),
                *keys.parts("holders", "done", "open", "again", "failures"),
            ],
            *(lease.token, status, len(finished), bytes(bitmap)),
            *(item for pair in fields.items() for item in pair),
        )
        return bool(answer)


def release_all(table: LeaseTable, jobs: JobTable, boot: str) -> None:
    """Give back every lease of a worker whose process is known to be gone."""
    for state in jobs.active():
        (holders,) = jobs.keys.job(state.job.id).parts("holders")
        for unit, text in table.client.hgetall(holders).items():
            with suppress(ValueError, KeyError, TypeError):  # damaged: not of a worker of ours
                holder = json.loads(text)
                if holder["boot"] == boot:
                    lease = Lease(state.job.id, unit, holder["token"])
                    table.release(lease, "handed_back")
