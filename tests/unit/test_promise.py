"""A promise is judged by all parts of a job, by all who look, and always alike."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_batch.data.output import OutputFolder
from helios_batch.data.shards import ShardPlan
from helios_batch.helios.audit import Audit, in_thousandths
from helios_batch.policy_file import read_broken
from helios_batch.promise import FolderPromise, judge
from helios_batch.totals import Totals

PARTS, BOUND = 12, 0.1
CLEAN, BAD = Counter({0: 4}), Counter({0: 2, 1000: 2})

losses_of_a_part = st.dictionaries(st.integers(0, 1000), st.integers(1, 6), max_size=4)


class Folder:
    """The output folder of a job, as far as a promise looks at it."""

    def __init__(self, path: Path) -> None:
        self.output = OutputFolder(str(path))
        self.job: Any = SimpleNamespace(
            output=self.output, shards=ShardPlan(PARTS, 1), fingerprint="f"
        )

    def publish(self, index: int, losses: dict[int, int]) -> None:
        """Publish a part with so many audited rows by loss."""
        totals = Totals(rows=1, audit_losses=Counter(losses))
        self.output.path.mkdir(exist_ok=True)
        self.output.publish_part(self.job.shards[index], pa.table({}), "f", totals.to_json())

    def promise(self) -> FolderPromise:
        """Return the promise as a worker sees it who comes now."""
        return FolderPromise(self.job, BOUND)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """An empty output folder."""
    return Folder(tmp_path / "out")


def test_workers_judge_by_each_other_s_parts(folder: Folder) -> None:
    """Two workers, neither of which has enough evidence of its own, stop together; so does a run
    that resumes the job."""
    workers = [folder.promise(), folder.promise()]
    shown = []
    for index in range(8):
        shown.append(workers[index % 2].is_broken())
        folder.publish(index, BAD)
    assert shown[:3] == [False] * 3
    assert shown[-1]
    broken = read_broken(folder.output)
    assert broken is not None
    alone = Audit(BOUND, 0.01)
    for _ in range(broken["audited"] // 8):  # half of the parts that it took
        alone.add(BAD)
    assert not alone.violated
    assert broken["mean_loss"] == 0.5
    assert all(promise.is_broken() for promise in (*workers, folder.promise()))


def test_only_the_first_parts_in_a_row_count(folder: Folder) -> None:
    """What is finished behind a missing or damaged part waits for it."""
    promise = folder.promise()
    for index in (0, *range(2, PARTS)):
        folder.publish(index, BAD)
    assert not promise.is_broken()
    part = folder.output.path / folder.job.shards[1].part_name
    part.write_bytes(b"no part")
    assert not promise.is_broken()
    part.unlink()
    folder.publish(1, BAD)
    assert promise.is_broken()


def test_the_last_part_is_judged_too(folder: Folder) -> None:
    """A finished job is judged by all of its parts."""
    judge(folder.output, BOUND, Counter({0: 100, 1000: 5}))
    assert read_broken(folder.output) is None
    judge(folder.output, BOUND, Counter({0: 100, 1000: 60}))
    assert read_broken(folder.output) is not None


@settings(max_examples=40)
@given(st.permutations(range(5)), st.lists(losses_of_a_part, min_size=5, max_size=5))
def test_whoever_looks_sees_one_sequence(order: list[int], parts: list[dict[int, int]]) -> None:
    """In whatever order parts are finished, what is found broken is a beginning of the job."""
    audit, beginnings = Audit(BOUND, 0.01), []
    for losses in parts:
        audit.add(losses)
        beginnings.append((audit.violated, audit.rows))
    with TemporaryDirectory() as place:
        folder = Folder(Path(place) / "out")
        early = folder.promise()
        seen = []
        for index in order:
            folder.publish(index, parts[index])
            seen.append(early.is_broken())
            assert folder.promise().is_broken() == seen[-1]
        assert seen == sorted(seen)
        assert seen[-1] == any(violated for violated, _ in beginnings)
        if seen[-1]:
            broken = read_broken(folder.output)
            assert broken is not None
            assert broken["audited"] == next(rows for violated, rows in beginnings if violated)


@given(st.lists(st.floats(0, 1), max_size=30))
def test_rounding_makes_no_evidence(losses: list[float]) -> None:
    """Counted in thousandths, losses say no more than they do."""
    exact = np.zeros(32)
    audit = Audit(BOUND, 0.01)
    for loss in losses:
        exact += np.log1p(audit._stakes * (loss - BOUND))
        audit.add({in_thousandths(loss): 1})
    assert all(audit._log_fortunes <= exact + 1e-6)
    assert audit.total == pytest.approx(sum(losses), abs=0.001 * len(losses) + 1e-6)
    assert (in_thousandths(0.0), in_thousandths(1 - 0.9), in_thousandths(1.0)) == (0, 100, 1000)
