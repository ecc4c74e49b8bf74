"""Jobs for tests: a spec on disk, and the command line run on it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from helios_batch.cli import main

ROOT = Path(__file__).parents[2]


def write_spec(folder: Path, model: Path | str, **changes: Any) -> Path:
    """Write a spec for `in.parquet` with its output in `out`; return its path."""
    spec = {
        "name": "test",
        "input": {"path": str(folder / "in.parquet")},
        "prompt": {"template": "{{ text }}"},
        "sampling": {"max_tokens": 12},
        "models": [str(model)],
        "output": {"path": str(folder / "out"), "rows_per_shard": 4},
        "resources": {"dtype": "float32", "memory": "64MiB", "threads": 2},
    }
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(spec | changes))
    return file


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


Run = Callable[..., Ended]
"""Runs the command line with the arguments it is given."""


def command(monkeypatch: Any, capfd: Any, *arguments: str | Path) -> Ended:
    """Run the command line in this process."""
    monkeypatch.setattr(sys, "argv", ["helios-batch", *map(str, arguments)])
    monkeypatch.setattr("signal.signal", lambda *args: None)
    try:
        main()
        status = 0
    except SystemExit as exc:
        status = int(exc.code or 0)
    out, err = capfd.readouterr()
    return Ended(status, out, err)


@contextmanager
def started(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Start the command line as a process of its own; it does not outlive the context."""
    with subprocess.Popen(
        [sys.executable, "-m", "helios_batch.cli", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run_to_end(*arguments: str | Path) -> int:
    """Run the command line as a process of its own; return its status."""
    with started(*arguments) as process:
        _, err = process.communicate(timeout=300)
        print(err)
        return process.returncode


def parts(folder: Path) -> list[Path]:
    """Return the published parts of a folder, in order."""
    return sorted((folder / "out").glob("part-*.parquet"))


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return all output rows, in order."""
    return pa.concat_tables([pq.read_table(part) for part in parts(folder)]).to_pylist()
