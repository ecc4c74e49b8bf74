"""Runs that are killed, interrupted, or out of disk: nothing half, and the next run goes on."""

from __future__ import annotations

import random
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.jobs import parts, rows, run_to_end, started, write_spec
from tests.support.parquet import write_rows

ROWS = 640
KILLS = 10
SEED = 20260401


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> list[dict[str, object]]:
    """The rows of a run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run_to_end("run", prepare(folder, tiny)) == 0
    return rows(folder)


def prepare(folder: Path, model: Path) -> Path:
    """Write an input and a spec in `folder`; return the spec."""
    write_rows(folder / "in.parquet", ROWS)
    return write_spec(
        folder,
        model,
        output={"path": str(folder / "out"), "rows_per_shard": 8},
        sampling={"max_tokens": 24, "temperature": 0.7, "seed": 9},
    )


def without_folder(found: list[dict[str, object]]) -> list[dict[str, object]]:
    """Drop the input file's path, which differs between test folders."""
    return [row | {"row_id": row["row_id"]["row"]} for row in found]  # type: ignore[index]


def wait_for_parts(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    """Wait until `count` parts are published or the process ends."""
    deadline = time.monotonic() + 60
    while len(parts(folder)) < count and process.poll() is None:
        assert time.monotonic() < deadline, "no part was published in a minute"
        time.sleep(0.002)


def test_kill_at_random_moments(
    tmp_path: Path, tiny: Path, undisturbed: list[dict[str, object]]
) -> None:
    """`kill -9` ten times, then one run to the end: the output is that of an undisturbed run."""
    spec = prepare(tmp_path, tiny)
    print(f"seed {SEED}")
    moments = random.Random(SEED)
    mid_job = 0
    for _ in range(KILLS):
        with started("run", spec) as process:
            # some kills hit the start, the others any moment of one of the next shards
            if moments.random() < 0.8:
                wait_for_parts(process, tmp_path, len(parts(tmp_path)) + moments.randint(1, 3))
            time.sleep(moments.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert not (tmp_path / "out" / "_SUCCESS").exists(), "the job ended before it was killed"
        mid_job += bool(parts(tmp_path))
    assert mid_job >= KILLS // 2
    survived = {part: part.stat().st_mtime_ns for part in parts(tmp_path)}
    assert run_to_end("run", spec) == 0
    assert without_folder(rows(tmp_path)) == without_folder(undisturbed)
    assert all(part.stat().st_mtime_ns == time_ for part, time_ in survived.items())
    assert not list((tmp_path / "out").glob("_tmp*")), "debris was left"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupts_finish_nothing_half(
    tmp_path: Path, tiny: Path, undisturbed: list[dict[str, object]], number: signal.Signals
) -> None:
    """Ctrl-C and SIGTERM end with 130 and a word on how to go on; the next run does."""
    spec = prepare(tmp_path, tiny)
    with started("run", spec) as process:
        wait_for_parts(process, tmp_path, 2)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in err
    assert "Traceback" not in err
    done = len(parts(tmp_path))
    assert 2 <= done < ROWS // 8
    assert run_to_end("run", spec) == 0
    assert without_folder(rows(tmp_path)) == without_folder(undisturbed)


def test_a_full_disk(tmp_path: Path, tiny: Path, undisturbed: list[dict[str, object]]) -> None:
    """Writes that the system refuses end with 1; finished parts stay, a rerun completes."""
    spec = prepare(tmp_path, tiny)
    with started("run", spec) as process:
        wait_for_parts(process, tmp_path, 1)
        # from now on no file of this process may grow beyond a few hundred bytes
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (200, 200))
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert "the output could not be written" in err
    assert "run the same command again" in err
    assert "Traceback" not in err
    assert 1 <= len(parts(tmp_path)) < ROWS // 8
    assert run_to_end("run", spec) == 0
    assert without_folder(rows(tmp_path)) == without_folder(undisturbed)
