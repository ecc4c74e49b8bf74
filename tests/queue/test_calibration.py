"""Calibration under a lease, and the engines that follow it: a worker's process, in this one."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from helios_batch import loading
from helios_batch.errors import ModelError
from helios_batch.helios.policy import Policy
from helios_batch.job import prepare
from helios_batch.policy_file import Calibration, publish_calibration
from helios_batch.queue import engines
from helios_batch.queue.dispatcher import Dispatcher
from helios_batch.queue.engines import Overrides
from helios_batch.queue.executor import EngineLostError, UnitExecutor
from helios_batch.queue.leases import SURVEY, Holder, Lease, LeaseTable
from helios_batch.records import Prompt
from helios_batch.spec_file import load_spec
from tests.support.fleet import Fleet, no_model
from tests.support.stub_engine import LayeredStub

ROWS, PER_SHARD, DRAWN = 80, 4, 20
QUALITY = {"min_agreement": 0.5, "confidence": 0.8, "calibration_rows": DRAWN}


class Killed(BaseException):
    """The process ends, and has no time to tell anyone."""


class Rig:
    """A job with `depth: auto`, and a worker's processes, each of which replaces the last one.

    `act` is called with each row that runs, `rows` holds those that ran, `engines` counts loads.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.pid, self.engines = fleet, 0, 0
        self.rows: list[int] = []
        self.act: Callable[[int], None] = lambda row: None
        spec = fleet.spec(ROWS, PER_SHARD, model="layered", depth="auto", quality=QUALITY)
        self.id = fleet.queue(spec)
        with no_model():
            self.job = prepare(load_spec(spec))
        self.policy = self.job.output.path / "_policy.json"
        self.replace()

    def replace(self) -> None:
        """Put a new process in the place of the one there is."""
        self.pid += 1
        holder = Holder("one@here", "boot", str(self.pid))
        self.process = UnitExecutor(
            self.fleet.settings, self.fleet.jobs, holder, Overrides(), lambda queue: None
        )

    def engine(self, *_: object) -> Any:
        """Load the stub of an engine."""
        rig = self
        rig.engines += 1

        class Acting(LayeredStub):
            def ran(self, prompt: Prompt) -> None:
                rig.rows.append(prompt.row)
                rig.act(prompt.row)

        return Acting()

    def run(self, unit: int | str) -> str:
        """Run a unit; return what became of it, which may be the death of the process."""
        self.rows.clear()
        try:
            return self.process.execute(self.id, str(unit))
        except (Killed, EngineLostError):
            self.replace()
            return "died"

    def deaths(self) -> dict[str, str]:
        """Return what lost processes were counted against."""
        (deaths,) = self.fleet.jobs.keys.job(self.id).parts("deaths")
        return dict(self.fleet.jobs.client.hgetall(deaths))

    def drawn(self) -> list[int]:
        """Return the rows that are calibrated on, in order."""
        draw = random.Random(f"calibration/{self.job.fingerprint}")
        return draw.sample(range(ROWS), DRAWN)


@pytest.fixture
def rig(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """A surveyed job, none of whose rows has run."""
    monkeypatch.setattr("helios_batch.job.open_model", lambda name: None)
    monkeypatch.setattr(UnitExecutor, "_show_soon", lambda self: None)
    monkeypatch.setattr(engines, "load_engine", loading.load_engine)
    with no_model():
        made = Rig(fleet)
    monkeypatch.setattr("helios_batch.job.open_model", lambda name: made.job.model)
    monkeypatch.setattr(loading, "_sole", made.engine)
    assert made.run(SURVEY) == "done"
    return made


@pytest.mark.parametrize("death", [Killed, MemoryError])
def test_a_killer_among_the_drawn_rows(rig: Rig, death: type[BaseException]) -> None:
    """After three lost processes, whatever shards they were at, the job runs at full depth and
    says why; the row is then found as any other is. A process that is killed is missed when its
    shard is claimed again."""
    killer = rig.drawn()[9]

    def act(row: int) -> None:
        if row == killer:
            raise death

    rig.act = act
    units = [unit for unit in range(ROWS // PER_SHARD) if unit != killer // PER_SHARD]
    tried = units[:1] * 4 if death is Killed else units[:4]
    assert [rig.run(unit) for unit in tried] == ["died"] * 3 + ["done"]
    assert rig.deaths() == {"calibration:0": "1", "calibration:1": "1", "calibration:2": "1"}
    assert rig.job.policy is not None
    assert rig.job.policy.depths == (2,)
    assert "full depth: calibration's process was lost 3 times" in rig.job.policy.reason
    ended = [rig.run(unit) for unit in units if unit != tried[3]]
    assert set(ended) == {"done"}
    while (outcome := rig.run(killer // PER_SHARD)) == "died":
        assert rig.pid < 20
    assert outcome == "done"
    assert rig.fleet.state(rig.id).status == "running"
    assert rig.run(SURVEY) == "done"
    rig.fleet.check_whole(ROWS)
    errors = {
        row["row_id"]["row"]: row["error"]["code"] for row in rig.fleet.rows() if row["error"]
    }
    assert errors == {killer: "quarantined"}


def test_a_process_that_is_lost_by_chance(rig: Rig) -> None:
    """One death does not keep the job from being calibrated."""

    def act(row: int) -> None:
        if rig.pid == 1:
            raise Killed

    rig.act = act
    assert [rig.run(unit) for unit in (0, 0)] == ["died", "done"]
    assert rig.job.policy is not None
    assert rig.job.policy.depths == (1, 2)


def test_what_is_lost_at_once_counts_once(rig: Rig) -> None:
    """A cluster that is stopped while all of its workers calibrate has lost one round; a worker
    that was only cut off takes its death back."""
    jobs = rig.fleet.jobs
    leases = LeaseTable(jobs.client, jobs.keys, 1.5)

    def claim(unit: int, pid: str) -> Lease:
        lease = leases.claim(rig.id, str(unit), "shards", Holder(f"{unit}@here", f"b{unit}", pid))
        assert isinstance(lease, Lease)
        return lease

    first = [claim(unit, "1") for unit in range(5)]
    for lease in first:
        leases.begin_calibration(lease, leases.lost_calibrations(rig.id))
    again = [claim(unit, "2") for unit in range(5)]
    assert leases.lost_calibrations(rig.id) == 1
    assert rig.deaths() == {"calibration:0": "5"}
    assert {(lease.deaths, lease.failures) for lease in again} == {(0, 0)}
    for lease in first:
        leases.forgive(lease)
    assert leases.lost_calibrations(rig.id) == 0


def test_a_lease_that_ran_out_in_calibration(rig: Rig) -> None:
    """Where a worker is gone with its process, the dispatcher counts the round as lost."""
    jobs = rig.fleet.jobs
    leases = LeaseTable(jobs.client, jobs.keys, 1.5)
    held = leases.claim(rig.id, "0", "shards", Holder("gone@there", "gone", "1"))
    assert isinstance(held, Lease)
    leases.begin_calibration(held, 0)
    jobs.client.delete(jobs.keys.job(rig.id).lease("0"))
    Dispatcher(rig.fleet.settings, jobs, lambda *_: None).tick()
    assert rig.deaths() == {"calibration:0": "1"}


def test_a_worker_that_stops_does_not_end_calibration_first(rig: Rig) -> None:
    """Told to stop, it gives its shard back at the next row; another calibrates anew."""
    rig.act = lambda row: rig.process.stop.set()
    assert rig.run(0) == "handed_back"
    assert len(rig.rows) == 1
    assert not rig.policy.exists()
    assert not rig.deaths()
    rig.act = lambda row: None
    rig.replace()
    assert rig.run(0) == "done"
    assert rig.policy.exists()


def test_a_cancelled_job_gets_no_policy(rig: Rig) -> None:
    """What is calibrated when the job is stopped is not published."""

    def act(row: int) -> None:
        rig.fleet.jobs.set_status(rig.id, "cancelled", ("running",))

    rig.act = act
    assert rig.run(0) == "fenced"
    assert len(rig.rows) > 0
    assert not rig.policy.exists()
    assert not rig.fleet.parts()
    assert not rig.deaths()


def test_an_engine_that_could_not_load_is_not_used_again(rig: Rig) -> None:
    """Where the layers of a stage can't be read, the next shard has an engine of its own."""
    assert rig.run(0) == "done"
    loaded, spoilt = rig.engines, rig.engines

    def act(row: int) -> None:
        if rig.engines == spoilt:
            raise ModelError("the weights can't be read", where="here", fix="try again")

    rig.act = act
    assert rig.run(1) == "failed"
    assert rig.run(2) == "done"
    assert rig.engines == loaded + 1


def test_a_folder_that_is_taken_away(rig: Rig) -> None:
    """A warm worker follows the policy that is in the folder, and makes one if there is none."""
    assert rig.run(0) == "done"
    first = rig.policy.read_text()
    shutil.rmtree(rig.job.output.path)
    assert rig.run(1) == "done"
    assert rig.policy.exists()
    shutil.rmtree(rig.job.output.path)
    other = Policy(("stub",), (2,), 2.0, 0.5, 0.8, "token", 0, "full depth: another worker's")
    made = Calibration(rig.job.fingerprint, "float32", other, ())
    publish_calibration(rig.job.output, made)
    assert rig.policy.read_text() != first
    assert rig.run(2) == "done"
    assert {row["exit"]["layers_loaded"] for row in rig.fleet.rows()} == {2}
