"""`tuning.json`: whose folder it is while a tuning runs, and its result afterwards."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from helios_batch.errors import OutputError
from helios_batch.tune.result import TuneResult

_RECORD = "tuning.json"


def claim(folder: Path, fingerprint: str) -> TuneResult | None:
    """Claim a folder for a tuning; return the result if this tuning is finished there.

    A finished tuning whose exits were deleted is made anew.

    Raises:
        OutputError: the folder holds another tuning.
    """
    record = folder / _RECORD
    try:
        found = json.loads(record.read_text())
        owner, done = found["fingerprint"], found["status"] == "done"
    except FileNotFoundError:
        record.write_text(json.dumps({"fingerprint": fingerprint, "status": "running"}))
        return None
    except (OSError, ValueError, KeyError, TypeError):
        owner = None
    if owner != fingerprint:
        raise OutputError(
            "the folder holds another tuning: model, data, exits, rows or seed differ",
            where=str(folder),
            fix="choose another folder with --out, or delete this one",
        )
    try:
        result = TypeAdapter(TuneResult).validate_python(found) if done else None
    except ValidationError:  # by another version
        return None
    there = result and all((folder / report.path.name).exists() for report in result.exits)
    return result if there else None


def write_record(result: TuneResult) -> None:
    """Write down that a tuning is done, and what it came to."""
    text = json.dumps(result.to_json() | {"status": "done"}, indent=2)
    (result.output / _RECORD).write_text(text)
