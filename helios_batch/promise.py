"""A job's promise, judged by the audits of its finished parts, whoever ran them."""

from __future__ import annotations

from collections.abc import Mapping

from helios_batch.data.output import OutputFolder
from helios_batch.errors import OutputError
from helios_batch.helios.audit import Audit
from helios_batch.job import Job
from helios_batch.policy_file import publish_broken, read_broken
from helios_batch.totals import Totals

_FALSE_ALARM = 0.01


class FolderPromise:
    """Judges by a job's parts in the input's order, up to the first one that is missing.

    So all that look at the output folder, workers and resumed runs, look at one sequence of
    audited rows, and together accuse a job that keeps its promise with a chance of 1 % at most.

    Args:
        job: the job.
        bound: the mean loss that was promised.
    """

    def __init__(self, job: Job, bound: float) -> None:
        self._output, self._shards, self._fingerprint = job.output, job.shards, job.fingerprint
        self._audit, self._next = Audit(bound, _FALSE_ALARM), 0

    def is_broken(self) -> bool:
        """Look at the parts that have come since the last call; keep it in the folder if broken.

        Raises:
            OutputError: what the folder says of it can't be read.
            WriteError: it can't be written.
        """
        if read_broken(self._output) is not None:
            return True
        while not self._audit.violated and (losses := self._losses_of_next()) is not None:
            self._audit.add(losses)
            self._next += 1
        return _keep(self._output, self._audit)

    def _losses_of_next(self) -> Mapping[int, int] | None:
        """Return the next part's losses, or None while it is missing.

        A damaged part counts as missing: whoever finishes the job reports it.
        """
        if self._next == len(self._shards):
            return None
        shard = self._shards[self._next]
        if not self._output.has_part(shard):
            return None
        try:
            data = self._output.part_totals(shard, self._fingerprint)
            return Totals.from_json(data).audit_losses
        except (OutputError, KeyError, TypeError, ValueError, AttributeError):
            return None


def judge(output: OutputFolder, bound: float, losses: Mapping[int, int]) -> None:
    """Judge a finished job by the losses of all its parts; keep it in the folder if broken.

    Raises:
        WriteError: it can't be written.
    """
    audit = Audit(bound, _FALSE_ALARM)
    audit.add(losses)
    _keep(output, audit)


def _keep(output: OutputFolder, audit: Audit) -> bool:
    if audit.violated:
        publish_broken(output, audit.rows, audit.total / audit.rows)
    return audit.violated
