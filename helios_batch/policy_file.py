"""A job's policy beside its parts, as all that run its shards follow it.

`_policy.json` holds the policy and the answers that it was made from, `_broken.json` that an audit
has found its promise broken. The first to publish one of them decides.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from helios_batch.data.output import OutputFolder
from helios_batch.errors import OutputError
from helios_batch.helios.policy import Policy
from helios_batch.records import Generation

_NAME = "_policy.json"
_BROKEN = "_broken.json"


@dataclass(frozen=True)
class Calibration:
    """A job's policy, and the generations at full depth of the rows it was calibrated on.

    `dtype` is the type that they were computed in, as the job's parts have to be.
    """

    fingerprint: str
    dtype: str
    policy: Policy
    answers: tuple[Generation, ...]


def read_calibration(output: OutputFolder, fingerprint: str) -> Calibration | None:
    """Return the calibration in a job's output folder, or None if there is none.

    Raises:
        OutputError: it is of another job, or can't be read.
    """
    text = output.read_note(_NAME)
    if text is None:
        return None
    try:
        found = TypeAdapter(Calibration).validate_json(text)
        if found.fingerprint != fingerprint:
            raise ValueError("it is another job's")
    except (ValidationError, ValueError) as exc:
        raise OutputError(
            f"the policy that the job is to follow can't be read: {exc}",
            where=str(output.path / _NAME),
            fix="choose a new output folder",
        ) from None
    return found


def calibration_mark(output: OutputFolder) -> tuple[int, int] | None:
    """Return what tells the calibration in an output folder from any other; None if there is none.

    It costs no reading.
    """
    try:
        found = (output.path / _NAME).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def publish_calibration(output: OutputFolder, made: Calibration) -> Calibration:
    """Put a calibration into the output folder; return the one that is there afterwards.

    Raises:
        OutputError: another was there first, and can't be read.
        WriteError: it can't be written.
    """
    output.publish_note(_NAME, json.dumps(asdict(made)))
    return read_calibration(output, made.fingerprint) or made


def read_broken(output: OutputFolder) -> dict[str, Any] | None:
    """Return what an audit found that broke the promise, or None if none did.

    Raises:
        OutputError: it can't be read.
    """
    text = output.read_note(_BROKEN)
    try:
        found: dict[str, Any] | None = json.loads(text) if text else None
    except ValueError as exc:
        raise OutputError(
            f"{_BROKEN} can't be read: {exc}",
            where=str(output.path / _BROKEN),
            fix="delete it: the finished parts are judged anew",
        ) from None
    return found


def publish_broken(output: OutputFolder, rows: int, loss: float) -> None:
    """Put it down that the audit of `rows` rows found a mean loss that breaks the promise.

    Raises:
        WriteError: it can't be written.
    """
    output.publish_note(_BROKEN, json.dumps({"audited": rows, "mean_loss": loss}))
