"""Every error a user can meet, as one tree.

HeliosError
├── UsageError            exit 2: nothing has been written
│   ├── SpecError         the job spec is malformed or asks for what is not there
│   ├── InputError        input files or columns are missing or unreadable
│   ├── OutputError       the output folder is not usable for this job
│   ├── ModelError        a model is unknown, unsupported or damaged
│   ├── ResourceError     memory, device or threads do not suffice
│   └── QueueUsageError   the queue is not named, or has no such job
└── JobError              exit 1: finished shards stay; running again resumes
    ├── WriteError        the output could not be written (disk full, I/O error)
    ├── ReadError         the input could not be read after the job began
    ├── FailureLimitError more rows failed than the spec allows
    ├── DeadlineError     the job's time was up
    ├── QueueError        Redis can't be reached or refuses
    ├── CommitRefused     another attempt, or a cancel, has the shard: not published
    └── Interrupted       exit 130: Ctrl-C or SIGTERM

A bad row is none of these: it carries a `records.RowError` in its own output row.
"""

from __future__ import annotations


class HeliosError(Exception):
    """What was wrong, where, and what to do about it; `exit_code` is the process's status."""

    exit_code = 1

    def __init__(self, what: str, *, where: str, fix: str) -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(f"{what}\n  where: {where}\n  fix:   {fix}")


class UsageError(HeliosError):
    """The request can't be carried out; nothing was written."""

    exit_code = 2


class SpecError(UsageError):
    """The job spec is malformed or asks for something unavailable."""


class InputError(UsageError):
    """An input file, folder or column is missing or unreadable."""


class OutputError(UsageError):
    """The output folder can't be used for this job."""


class ModelError(UsageError):
    """A model is unknown, unsupported or damaged."""


class ResourceError(UsageError):
    """Memory, device or threads don't suffice for what was asked."""


class QueueUsageError(UsageError):
    """The queue is not named or not set up, or it has no such job."""


class JobError(HeliosError):
    """The job stopped; what is finished stays and a rerun goes on from there."""


class WriteError(JobError):
    """A part could not be written or published."""


class ReadError(JobError):
    """An input that opened well could not be read to its end."""


class FailureLimitError(JobError):
    """More rows failed than `limits.max_failed_rows` allows."""


class DeadlineError(JobError):
    """`limits.deadline` has passed."""


class QueueError(JobError):
    """Redis can't be reached, or refuses to do its part."""


class CommitRefused(JobError):  # noqa: N818 - the shard is fine, in other hands
    """A part was not published: another attempt has the shard, or its job was stopped."""


class Interrupted(JobError):  # noqa: N818 - not the user's error
    """The job was stopped by Ctrl-C or SIGTERM."""

    exit_code = 130
