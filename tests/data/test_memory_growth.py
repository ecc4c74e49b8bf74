"""The data path's memory does not grow with the input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.data_path import write_input
from tests.support.jobs import ROOT


def test_ten_times_the_rows_take_no_more_memory(tiny: Path, tmp_path: Path) -> None:
    """Peaks of 20,000 and 200,000 rows, beyond the libraries' own memory, are near each other."""
    grown = {}
    for rows in (20_000, 200_000):
        folder = tmp_path / str(rows)
        folder.mkdir()
        write_input(folder / "in.parquet", rows)
        command = [sys.executable, "-m", "tests.benchmarks.data_path", "--folder", str(folder)]
        done = subprocess.run(
            [*command, "--model", str(tiny)],
            capture_output=True,
            check=True,
            cwd=ROOT,
            env=os.environ | {"HELIOS_CACHE": str(tmp_path / "cache")},
        )
        found = json.loads(done.stdout)
        assert found["rows"] == rows
        grown[rows] = (found["peak"] - found["libraries"]) / 1e6
    print(grown)
    assert grown[200_000] < grown[20_000] + 40
