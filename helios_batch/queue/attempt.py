"""One attempt at a shard: revoke those before it, run, publish, tell Redis."""

from __future__ import annotations

import threading
from dataclasses import replace

from helios_batch.crashpoint import crashpoint
from helios_batch.data.shards import Shard
from helios_batch.errors import JobError
from helios_batch.finish import part_totals
from helios_batch.queue.jobs import JobTable
from helios_batch.queue.keeper import LeaseKeeper
from helios_batch.queue.leases import Lease, LeaseTable
from helios_batch.queue.poison import Suspicion
from helios_batch.queue.prepared import Prepared
from helios_batch.records import Generator, Progress
from helios_batch.shard import probe_rows, run_shard
from helios_batch.supervision import Supervisor
from helios_batch.totals import Totals


class HandBack(Exception):  # noqa: N818 - nothing failed
    """The worker is told to stop; its unit goes to another."""


class ShardAttempt:
    """Runs one leased shard of an open job.

    Args:
        prepared: the job.
        lease: this attempt's lease, and what is known of the shard's earlier attempts.
        keeper: keeps the lease.
        stop: set when the worker is told to stop.
        max_deaths: lost processes after which the shard's rows are suspected, and the job is not
            calibrated any more.
    """

    def __init__(
        self,
        prepared: Prepared,
        lease: Lease,
        keeper: LeaseKeeper,
        jobs: JobTable,
        leases: LeaseTable,
        stop: threading.Event,
        max_deaths: int,
    ) -> None:
        self._prepared, self._lease, self._keeper = prepared, lease, keeper
        self._jobs, self._leases, self._stop, self._max_deaths = jobs, leases, stop, max_deaths
        self.shard: Shard = prepared.job.shards[int(lease.unit)]

    def published(self) -> Totals | None:
        """Return the totals of the part that an earlier attempt has published, if one has.

        After this no earlier attempt can publish, wherever it stands.
        """
        output = self._prepared.job.output
        output.revoke(self.shard)
        if not output.has_part(self.shard):
            return None
        totals = part_totals(self._prepared.job, self.shard)
        self._leases.complete(self._lease, totals)
        return totals

    @property
    def supervisor(self) -> Supervisor:
        """Who watches over the job's calibration, if this attempt is the one to do it."""
        return Supervisor(self._begin_calibration, self._on_step, self._keeper.confirm)

    def _begin_calibration(self) -> str | None:
        lost = self._leases.lost_calibrations(self._lease.job_id)
        if lost >= self._max_deaths:
            return f"calibration's process was lost {lost} times, maybe by a row"
        self._leases.begin_calibration(self._lease, lost)
        return None

    def run(self, engine: Generator) -> Totals:
        """Run the shard and publish its part.

        Raises:
            HandBack: the worker is to stop.
            CommitRefused: the lease is lost, or the job was stopped.
            JobError: input or output failed, or the shard can't be run at all.
        """
        self._keeper.check()
        self._leases.begin(self._lease)
        suspicion = self._clear(engine)
        output = self._prepared.job.output.guarded(self._keeper.confirm)
        context = replace(self._prepared.context, output=output)
        result = run_shard(self.shard, context, engine, self._on_step, suspicion.quarantined)
        totals = result.totals
        if not result.published:
            totals = part_totals(self._prepared.job, self.shard)
        crashpoint("shard.published")
        self._leases.complete(self._lease, totals)
        crashpoint("shard.completed")
        return totals

    def _on_step(self, progress: Progress) -> None:
        self._keeper.check()
        if self._stop.is_set():
            raise HandBack

    def _clear(self, engine: Generator) -> Suspicion:
        """Probe the rows of a shard that has lost its processes, until it may run as a whole."""
        lease, shard = self._lease, self.shard
        suspicion = Suspicion.from_json(lease.suspicion, shard.rows)
        suspicion = suspicion.after_deaths(lease.deaths, self._max_deaths)
        if lease.deaths or lease.suspicion:
            self._leases.suspect(lease, suspicion.to_json())
        while (probe := suspicion.probe) is not None and not suspicion.hopeless:
            rows = f"{shard.start + probe.start} to {shard.start + probe.stop - 1}"
            self._jobs.event(lease.job_id, "probing", unit=lease.unit, rows=rows)
            skipped = suspicion.quarantined
            probe_rows(shard, probe, self._prepared.context, engine, self._on_step, skipped)
            suspicion = suspicion.survived()
            self._leases.suspect(lease, suspicion.to_json())
        if suspicion.hopeless:
            raise JobError(
                f"shard {shard.index} loses its process again and again, and no single row is to "
                "blame",
                where=f"rows {shard.start} to {shard.stop - 1} of the input",
                fix="give the workers more memory, or the job a smaller max_batch, and retry it",
            )
        return suspicion
