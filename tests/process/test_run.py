"""`helios-batch run` on a tiny model: from the spec to the parts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq

from tests.support.jobs import Run, parts, rows, write_spec
from tests.support.parquet import write_rows


def test_a_job_end_to_end(cli: Run, tmp_path: Path, tiny: Path) -> None:
    """Every row comes out once, in order, with its text and its exit; `_SUCCESS` is last."""
    given = write_rows(tmp_path / "in.parquet", 11)
    ended = cli("run", write_spec(tmp_path, tiny, depth=3))
    assert ended.status == 0, ended.err
    out = rows(tmp_path)
    assert [row["id"] for row in out] == given.column("id").to_pylist()
    assert [row["row_id"]["row"] for row in out] == list(range(11))
    assert all(row["error"] is None and row["generated_text"] is not None for row in out)
    assert all(row["exit"]["token_layers"] == [3] * row["completion_tokens"] for row in out)
    assert [part.name for part in parts(tmp_path)] == [f"part-0000{i}.parquet" for i in range(3)]
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.name.startswith("_")) == [
        "_SUCCESS",
        "_job.json",
    ]
    job = json.loads((tmp_path / "out" / "_job.json").read_text())
    totals = job["totals"]
    assert job["status"] == "done"
    assert totals["rows"] == 11
    tokens = sum(row["completion_tokens"] for row in out)
    assert totals["completion_tokens"] == totals["exit_histogram"]["3"] == tokens
    assert set(totals["seconds"]) == {"read", "prefill", "decode", "write"}
    [engine] = totals["engines"]
    assert engine["layers_loaded"] == 3
    assert 0 < engine["weight_bytes_left"] < engine["weight_bytes_loaded"]
    assert totals["largest_batch"] == 4
    assert 0 < totals["mean_batch"] <= 4
    assert totals["tokens_per_second"] > 0
    assert "layer 3" in ended.out


def test_shard_and_batch_sizes_do_not_change_rows(cli: Run, tmp_path: Path, tiny: Path) -> None:
    """The same rows come out whatever the shards and batches, sampled ones too."""
    write_rows(tmp_path / "in.parquet", 11)
    outputs = []
    for size, batch in ((11, 64), (3, 2), (1, 1)):
        spec = write_spec(
            tmp_path,
            tiny,
            output={"path": str(tmp_path / "out"), "rows_per_shard": size},
            resources={"dtype": "float32", "memory": "64MiB", "max_batch": batch},
            sampling={"max_tokens": 12, "temperature": 0.8, "seed": 4},
        )
        assert cli("run", spec).status == 0
        outputs.append(rows(tmp_path))
        shutil.rmtree(tmp_path / "out")
    assert outputs[0] == outputs[1] == outputs[2]


def test_an_empty_input(cli: Run, tmp_path: Path, tiny: Path) -> None:
    """No rows: success, and one empty part with the full schema."""
    write_rows(tmp_path / "in.parquet", 0)
    assert cli("run", write_spec(tmp_path, tiny)).status == 0
    [part] = parts(tmp_path)
    empty = pq.read_table(part)
    assert empty.num_rows == 0
    assert empty.column_names[:3] == ["id", "text", "row_id"]
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_names_with_brackets_are_shown_as_they_are(cli: Run, tmp_path: Path, tiny: Path) -> None:
    """Paths that look like markup are printed, not parsed."""
    write_rows(tmp_path / "in.parquet", 3)
    odd = str(tmp_path / "out[/red]")
    ended = cli("run", write_spec(tmp_path, tiny, output={"path": odd}))
    assert (ended.status, "[/red]" in ended.out) == (0, True)
