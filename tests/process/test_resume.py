"""Running a job again: what is finished stays, what changed is noticed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from helios_batch.job import prepare
from helios_batch.local import run_local
from helios_batch.records import ErrorCode, Generation, RowError
from helios_batch.spec_file import load_spec
from tests.support.engines import Silent
from tests.support.jobs import Run, parts, rows, write_spec
from tests.support.parquet import write_rows
from tests.support.stub_engine import StubEngine
from tests.support.tiny import make_model


def test_running_again_repeats_nothing(cli: Run, tmp_path: Path, tiny: Path) -> None:
    """Finished shards stay as they are; a lost one alone is redone, with the same rows."""
    write_rows(tmp_path / "in.parquet", 11)
    spec = write_spec(tmp_path, tiny)
    assert cli("run", spec).status == 0
    before = {part: (part.read_bytes(), part.stat().st_mtime_ns) for part in parts(tmp_path)}
    expected = rows(tmp_path)
    again = cli("run", spec, "--json")
    assert json.loads(again.out)["resumed_rows"] == 11
    assert "loading" not in again.err, "an engine was made with nothing to do"
    parts(tmp_path)[1].unlink()
    assert json.loads(cli("run", spec, "--json").out)["resumed_rows"] == 7
    assert rows(tmp_path) == expected
    for i in (0, 2):
        part = parts(tmp_path)[i]
        assert (part.read_bytes(), part.stat().st_mtime_ns) == before[part]
    # other resources are the same job
    write_spec(tmp_path, tiny, resources={"dtype": "float32", "memory": "100MiB", "max_batch": 2})
    assert cli("run", spec).status == 0


def test_a_changed_job_is_noticed(cli: Run, tmp_path: Path, tiny: Path) -> None:
    """Another spec, input or model in the same folder is refused, naming what changed."""
    write_rows(tmp_path / "in.parquet", 5)
    assert cli("run", write_spec(tmp_path, tiny)).status == 0
    before = rows(tmp_path)
    ended = cli("run", write_spec(tmp_path, tiny, sampling={"max_tokens": 5}))
    assert ended.status == 2
    assert "spec.sampling.max_tokens: was 12, is 5" in ended.err
    write_rows(tmp_path / "in.parquet", 5, first=1)
    ended = cli("run", write_spec(tmp_path, tiny))
    assert ended.status == 2
    assert "input[0].content" in ended.err
    write_rows(tmp_path / "in.parquet", 5)
    make_model(tmp_path / "model", "llama3", seed=1)
    shutil.copytree(tiny, tmp_path / "copy")
    shutil.copy(tmp_path / "model" / "model.safetensors", tmp_path / "copy" / "model.safetensors")
    ended = cli("run", write_spec(tmp_path, tmp_path / "copy"))
    assert ended.status == 2
    assert "model: was" in ended.err
    assert rows(tmp_path) == before


def test_parts_have_one_dtype(cli: Run, tmp_path: Path, tiny: Path) -> None:
    """A resume that would compute in another dtype than the finished parts is refused."""
    write_rows(tmp_path / "in.parquet", 9)
    assert cli("run", write_spec(tmp_path, tiny)).status == 0
    parts(tmp_path)[0].unlink()
    other = {"dtype": "bfloat16", "memory": "64MiB"}
    ended = cli("run", write_spec(tmp_path, tiny, resources=other))
    assert ended.status == 2
    assert "set resources.dtype to float32" in ended.err


def test_success_goes_when_a_part_is_lost(
    cli: Run, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`_SUCCESS` never stands beside an incomplete output once a run has looked at it."""
    write_rows(tmp_path / "in.parquet", 9)
    spec = write_spec(tmp_path, tiny)
    assert cli("run", spec).status == 0
    parts(tmp_path)[0].unlink()
    with monkeypatch.context() as patch:
        patch.setattr("helios_batch.local.run_shard", interrupt)
        assert cli("run", spec).status == 130
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert cli("run", spec).status == 0
    assert (tmp_path / "out" / "_SUCCESS").exists()


def interrupt(*arguments: Any) -> None:
    raise KeyboardInterrupt


def test_the_part_that_was_first_counts(tmp_path: Path, tiny: Path, cache: Path) -> None:
    """Of two runs on one folder the first to publish wins, and both report its part."""
    write_rows(tmp_path / "in.parquet", 3)
    job = prepare(load_spec(write_spec(tmp_path, tiny)))

    class Overtaken(StubEngine):
        def generate(self, *arguments: Any) -> list[Generation]:
            run_local(job, lambda job: Other(), Silent())
            return super().generate(*arguments)

    class Other(StubEngine):
        def generate(self, prompts: Any, *arguments: Any) -> list[Generation]:
            error = RowError(ErrorCode.TEMPLATE_ERROR, "the other run's")
            return [Generation.failed(prompt.row, error) for prompt in prompts]

    result = run_local(job, lambda job: Overtaken(), Silent())
    assert [row["error"]["message"] for row in rows(tmp_path)] == ["the other run's"] * 3
    assert result.totals.errors == {"template_error": 3}
