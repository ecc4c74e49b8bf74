"""Parts: their schema, their publishing, and what a folder tells of its job."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helios_batch.data import publish as publishing
from helios_batch.data.output import OutputFolder
from helios_batch.data.publish import publish, sweep
from helios_batch.data.reader import RowReader
from helios_batch.data.schema import GENERATED, generated_schema, output_schema, part_table
from helios_batch.data.shards import ShardPlan
from helios_batch.data.source import open_input
from helios_batch.errors import InputError, OutputError, WriteError
from helios_batch.records import ErrorCode, ExitRecord, FinishReason, Generation, RowError
from tests.support.parquet import every_type

GOOD = Generation(0, "text", FinishReason.STOP, 3, 2, ExitRecord("m", 4, (2, 2), (0.25, 0.75)))
BAD = Generation.failed(0, RowError(ErrorCode.NULL_PROMPT, "why"))
JOB: dict[str, Any] = {"fingerprint": "f", "identity": {"spec": {"depth": 3}}}


def writer(data: bytes) -> Callable[[BinaryIO], None]:
    def write(file: BinaryIO) -> None:
        file.write(data)

    return write


def part(rows: pa.Table, generations: list[Generation]) -> pa.Table:
    schema = pa.schema([*rows.schema, *GENERATED])
    ids = [("in.parquet", i) for i in range(len(rows))]
    return part_table(schema, rows, ids, generations)


def test_every_type_passes_through(tmp_path: Path) -> None:
    """Each Arrow type comes out as it went in, nulls included, beside the added columns."""
    table = every_type()
    # row groups of one row: dictionaries differ from batch to batch
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=1)
    source = open_input(str(tmp_path / "in.parquet"))
    schema = output_schema(source, table.column_names)
    rows = RowReader(source, tuple(table.column_names)).read(0, 3)
    output = OutputFolder(str(tmp_path / "out"))
    output.claim(JOB)
    shard = ShardPlan(3, 3)[0]
    for generations in ([GOOD, BAD, GOOD], [BAD] * 3):
        made = part(rows, generations)
        assert made.schema.equals(schema)
        (tmp_path / "out" / shard.part_name).unlink(missing_ok=True)
        assert output.publish_part(shard, made, "f", {})
        read = pq.read_table(tmp_path / "out" / shard.part_name)
        assert read.schema.equals(schema)
        assert read.equals(made)
        for name in table.column_names:
            assert read.column(name).to_pylist() == table.column(name).to_pylist(), name


def test_generated_columns() -> None:
    """The added columns say what became of a row; an error leaves the others null."""
    good, bad = part(pa.table({"a": [1, 2]}), [GOOD, BAD]).to_pylist()
    assert good["row_id"] == {"file": "in.parquet", "row": 0}
    assert (good["generated_text"], good["finish_reason"], good["error"]) == ("text", "stop", None)
    assert good["exit"]["token_layers"] == [2, 2]
    assert good["exit"]["layers_loaded"] == 2
    assert (good["exit"]["mean_confidence"], good["exit"]["min_confidence"]) == (0.5, 0.25)
    assert (good["exit"]["stage"], good["exit"]["audited"]) == (0, False)
    assert bad["error"] == {"code": "null_prompt", "message": "why"}
    assert (bad["generated_text"], bad["finish_reason"], bad["exit"]) == (None, "error", None)


def test_label_columns() -> None:
    """Label and probabilities come after the text, in every part; an error leaves them null."""
    choices = ["io", "a.b", "Ma th"]
    rows = pa.table({"a": [1, 2]})
    schema = pa.schema([*rows.schema, *generated_schema(choices)])
    labelled = replace(GOOD, text="a.b", label="a.b", label_probability=(0.25, 0.5, 0.25))
    ids = [("in.parquet", i) for i in range(2)]
    good, bad = part_table(schema, rows, ids, [labelled, BAD]).to_pylist()
    assert list(good)[2:5] == ["generated_text", "label", "label_probability"]
    assert good["label"] == good["generated_text"] == "a.b"
    assert good["label_probability"] == {"io": 0.25, "a.b": 0.5, "Ma th": 0.25}
    assert (bad["label"], bad["label_probability"]) == (None, None)
    assert part_table(schema, rows, ids, [BAD, BAD]).schema.equals(schema)


def test_clashing_names_are_refused(tmp_path: Path) -> None:
    """An input column that is named as an added one is an error with a way out."""
    pq.write_table(pa.table({"error": [1], "a": [2]}), tmp_path / "in.parquet")
    source = open_input(str(tmp_path / "in.parquet"))
    with pytest.raises(InputError, match="error") as caught:
        output_schema(source, ["a", "error"])
    assert "input.columns" in str(caught.value)
    assert output_schema(source, ["a"]).names == ["a", *GENERATED.names]
    pq.write_table(pa.table({"label": [1], "label_probability": [2]}), tmp_path / "in.parquet")
    source = open_input(str(tmp_path / "in.parquet"))
    with pytest.raises(InputError, match="label, label_probability"):
        output_schema(source, ["label", "label_probability"], ["a", "b"])
    # without a label task these names are free
    made = part(pa.table({"label": [1], "label_probability": [2]}), [GOOD])
    assert made.schema.equals(output_schema(source, ["label", "label_probability"]))


def test_readers_see_one_table(tmp_path: Path) -> None:
    """polars, DuckDB and pandas read the folder as one table, `_` files notwithstanding."""
    output = OutputFolder(str(tmp_path / "out"))
    output.claim(JOB)
    plan = ShardPlan(5, 2)
    for index in range(len(plan)):
        shard = plan[index]
        rows = pa.table({"id": list(range(shard.start, shard.stop))})
        output.publish_part(shard, part(rows, ([GOOD, BAD] * 3)[: shard.rows]), "f", {})
    output.record(JOB, success=True)
    folder = str(tmp_path / "out")
    assert pl.read_parquet(f"{folder}/*.parquet")["id"].to_list() == [0, 1, 2, 3, 4]
    query = f"select id, error.code from '{folder}/*.parquet' order by id"
    assert duckdb.sql(query).fetchall()[:2] == [(0, None), (1, "null_prompt")]
    frame = pd.read_parquet(folder)
    assert frame["id"].tolist() == [0, 1, 2, 3, 4]
    assert frame["generated_text"].notna().tolist() == [True, False, True, False, True]


def visible(folder: Path) -> list[str]:
    """The names that a reader of the folder sees."""
    return [path.name for path in folder.iterdir() if not path.name.startswith("_")]


def test_first_commit_wins(tmp_path: Path) -> None:
    """A second attempt at a name is told so, and changes nothing."""
    target = tmp_path / "part"
    assert publish(target, writer(b"first"))
    assert not publish(target, writer(b"second"))
    assert target.read_bytes() == b"first"
    assert publish(target, writer(b"third"), replace=True)
    assert target.read_bytes() == b"third"
    assert visible(tmp_path) == ["part"]
    assert not list((tmp_path / "_tmp").iterdir())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("step", ["write", "fsync", "link", "folder"])
def test_io_errors_leave_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int
) -> None:
    """Whatever step of a commit fails, the part is absent or whole, and the error says why."""

    def fail(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    def write(file: Any) -> None:
        file.write(b"x" * 1000)
        if step == "write":
            fail()

    with monkeypatch.context() as patch:
        if step in ("fsync", "link"):
            patch.setattr(publishing.os, step, fail)
        if step == "folder":
            patch.setattr(publishing, "sync_folder", fail)
        with pytest.raises(WriteError, match=os.strerror(code)) as caught:
            publish(tmp_path / "part", write)
    assert "run the same command again" in str(caught.value)
    assert not list((tmp_path / "_tmp").iterdir())
    left = visible(tmp_path)
    assert left == (["part"] if step == "folder" else [])
    assert publish(tmp_path / "part", write if step != "write" else lambda f: None) == (not left)


def test_success_leaves_no_debris(tmp_path: Path) -> None:
    """What killed writers have left goes when the job is done, whatever file it was to become."""
    output = OutputFolder(str(tmp_path / "out"))
    output.claim(JOB)
    (tmp_path / "out" / "_tmp").mkdir(exist_ok=True)
    (tmp_path / "out" / "_tmp" / "_job.json-dead").write_bytes(b"half")
    output.record(JOB, success=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["_SUCCESS", "_job.json"]


def test_sweep_removes_debris_and_spares_the_living(tmp_path: Path) -> None:
    """Temporary files of killed writers go; one that is being written stays."""
    (tmp_path / "_tmp").mkdir()
    (tmp_path / "_tmp" / "part-00000.parquet-dead").write_bytes(b"half")

    def write(file: Any) -> None:
        sweep(tmp_path)
        assert len(list(tmp_path.glob("_tmp/*"))) == 1
        file.write(b"whole")

    assert publish(tmp_path / "part", write)
    assert (tmp_path / "part").read_bytes() == b"whole"


def test_a_sweep_between_creating_and_locking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep that comes before the writer has its lock costs nothing."""
    original, swept = publishing.fcntl.flock, []

    def flock(file: Any, operation: int) -> None:
        if not swept:
            swept.append(True)
            sweep(tmp_path)
        original(file, operation)

    monkeypatch.setattr(publishing.fcntl, "flock", flock)
    assert publish(tmp_path / "part", writer(b"whole"))
    assert (tmp_path / "part").read_bytes() == b"whole"


def test_what_a_folder_can_be(tmp_path: Path) -> None:
    """A folder is free, this job's, another job's (with what differs), or somebody else's."""
    output = OutputFolder(str(tmp_path / "a" / "b"))
    output.check("f", JOB["identity"])
    assert not (tmp_path / "a").exists(), "a check writes nothing"
    output.claim(JOB)
    output.claim(JOB)
    with pytest.raises(OutputError, match=r"spec\.depth: was 3, is 4"):
        output.check("g", {"spec": {"depth": 4}})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        OutputFolder(str(tmp_path / "full")).check("f", {})
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        OutputFolder(str(tmp_path / "file"))
    with pytest.raises(OutputError, match="no folder can be written"):
        OutputFolder(str(tmp_path / "file" / "out")).check("f", {})
    with pytest.raises(OutputError, match="the output folder can't be written"):
        OutputFolder("/proc/out").claim(JOB)
    with pytest.raises(OutputError, match="s3:// is not available"):
        OutputFolder("s3://bucket/out")
    (tmp_path / "a" / "b" / "_job.json").write_text("{")
    with pytest.raises(OutputError, match="can't be read"):
        output.check("f", {})


def test_finished_parts_are_checked(tmp_path: Path) -> None:
    """A part that is damaged, or of another job, is not taken for this job's."""
    output = OutputFolder(str(tmp_path))
    plan = ShardPlan(4, 2)
    output.publish_part(plan[1], part(pa.table({"a": [1, 2]}), [GOOD, BAD]), "f", {"rows": 2})
    assert [(shard.index, totals) for shard, totals in output.finished(plan, "f")] == [
        (1, {"rows": 2})
    ]
    with pytest.raises(OutputError, match="another job's fingerprint"):
        list(output.finished(plan, "g"))
    (tmp_path / plan[1].part_name).write_bytes(b"PAR1")
    with pytest.raises(OutputError, match="delete that file"):
        list(output.finished(plan, "f"))


def test_success_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`_SUCCESS` appears after the final `_job.json`, and not without it."""
    output = OutputFolder(str(tmp_path))
    output.claim(JOB)
    order: list[str] = []

    def recorded(target: Path, *arguments: Any, **options: Any) -> bool:
        order.append(target.name)
        return publish(target, *arguments, **options)

    monkeypatch.setattr("helios_batch.data.output.publish", recorded)
    output.record(JOB | {"status": "failed"}, success=False)
    assert not (tmp_path / "_SUCCESS").exists()
    output.record(JOB | {"status": "done"}, success=True)
    assert (tmp_path / "_SUCCESS").exists()
    assert order == ["_job.json", "_job.json", "_SUCCESS"]
    assert json.loads((tmp_path / "_job.json").read_text())["status"] == "done"


def test_names_sort_as_shards_do() -> None:
    """Part names have one width in a job, five digits or more."""
    assert ShardPlan(10, 1)[3].part_name == "part-00003.parquet"
    many = ShardPlan(1_000_000, 1)
    assert many[99_999].part_name < many[100_000].part_name == "part-100000.parquet"
    assert ShardPlan(100_001, 1)[7].part_name == "part-000007.parquet"


def test_an_empty_input_has_one_empty_shard() -> None:
    """Shards are row ranges; none at all would leave no schema behind."""
    assert [(s.start, s.stop) for s in (ShardPlan(0, 5)[0],)] == [(0, 0)]
    plan = ShardPlan(11, 5)
    assert [(plan[i].start, plan[i].stop) for i in range(len(plan))] == [(0, 5), (5, 10), (10, 11)]
    with pytest.raises(IndexError):
        plan[3]
