"""`_policy.json`: a job's policy beside its parts, and the answers that it was made from.

The first to publish it decides for all that run the job's shards.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from pydantic import TypeAdapter, ValidationError

from helios_batch.data.output import OutputFolder
from helios_batch.errors import OutputError
from helios_batch.helios.policy import Policy
from helios_batch.records import Generation

_NAME = "_policy.json"


@dataclass(frozen=True)
class Calibration:
    """A job's policy, and the generations at full depth of the rows it was calibrated on."""

    fingerprint: str
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


def publish_calibration(output: OutputFolder, made: Calibration) -> Calibration:
    """Put a calibration into the output folder; return the one that is there afterwards.

    Raises:
        OutputError: another was there first, and can't be read.
        WriteError: it can't be written.
    """
    output.publish_note(_NAME, json.dumps(asdict(made)))
    return read_calibration(output, made.fingerprint) or made
