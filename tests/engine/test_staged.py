"""An engine under a policy, its model a stub."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helios_batch.helios.policy import Policy
from helios_batch.job import prepare
from helios_batch.promise import FolderPromise
from helios_batch.records import Prompt
from helios_batch.shard import probe_rows, run_shard
from helios_batch.spec import SamplingSpec
from helios_batch.spec_file import load_spec
from helios_batch.staged import StagedEngine
from tests.support.fleet import no_model
from tests.support.jobs import write_spec
from tests.support.parquet import write_rows
from tests.support.stub_engine import LayeredStub

POLICY = Policy(("stub",) * 2, (1, 2), 0.9, 0.9, 0.95, "token", 0, "for the test")


@pytest.fixture
def job(tmp_path: Path) -> Any:
    """A job of five shards of 8 rows."""
    write_rows(tmp_path / "in.parquet", 40)
    output = {"path": str(tmp_path / "out"), "rows_per_shard": 8}
    with no_model():
        return prepare(load_spec(write_spec(tmp_path, "stub", output=output)))


def staged(job: Any, wrong: range) -> StagedEngine:
    """Return an engine that audits each row, and is wrong about some."""
    inner: Any = LayeredStub(wrong)
    return StagedEngine(inner, POLICY, 1.0, {}, FolderPromise(job, 0.1))


def test_probed_rows_count_in_no_audit(job: Any) -> None:
    """Rows that are run to see whether the process survives count when their shard runs, once."""
    engine, context = staged(job, range(8)), job.context()
    for _ in range(20):
        probe_rows(job.shards[0], range(8), context, engine)
    totals = run_shard(job.shards[0], context, engine).totals
    assert totals.audit_losses == {1000: 8}
    assert totals.audited_rows == 8
    assert job.broken is None, "probes were taken for evidence"


def test_losses_are_those_of_the_rows_drawn(job: Any) -> None:
    """Each drawn row counts with its loss; once the promise is broken, none is drawn."""
    engine, context = staged(job, range(12)), job.context()
    stages, losses = [], []
    for shard in (job.shards[index] for index in range(5)):
        totals = run_shard(shard, context, engine).totals
        stages.append(totals.stages)
        losses.append(totals.audit_losses)
    assert losses == [Counter({1000: 8}), Counter(), Counter(), Counter(), Counter()]
    assert stages == [{0: 8}, {1: 8}, {1: 8}, {1: 8}, {1: 8}]
    assert job.broken == {"audited": 8, "mean_loss": 1.0}


def test_progress_never_goes_back(job: Any) -> None:
    """Rows that are to be audited are done when they are, whatever stage they left at."""
    policy = Policy(("stub",) * 3, (1, 1, 2), 0.9, 0.9, 0.95, "token", 0, "for the test")
    inner: Any = Hesitant()
    engine = StagedEngine(inner, policy, 0.5, {}, FolderPromise(job, 0.1))
    steps: list[int] = []
    rows = [Prompt(row, "a") for row in range(40)]
    engine.generate(rows, SamplingSpec(), lambda progress: steps.append(progress.rows_done))
    assert steps == sorted(steps)
    assert steps[-1] == len(rows)


class Hesitant(LayeredStub):
    """Is unsure of every third row, below its second layer."""

    def generate(self, prompts: Any, sampling: Any, on_step: Any = None) -> Any:
        """Return one token per prompt."""
        return [
            replace(row, exit=replace(row.exit, token_confidences=(0.1,)))
            if row.row % 3 == 0 and row.exit and self._depth == 1
            else row
            for row in super().generate(prompts, sampling, on_step)
        ]
