"""`models tune` on a tiny model: exits made, measured, used by a job, and taken up again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from helios_batch.models.exits.file import find_exits
from helios_batch.models.folder import open_model
from helios_batch.tune import run
from tests.support.jobs import Ended, Run, rows, write_spec

TEXTS = [f"{'the quick brown fox jumps over the lazy dog'[: 5 + i % 30]} {i}" for i in range(60)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Sixty prompts."""
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "in.parquet")
    return tmp_path / "in.parquet"


@pytest.fixture(autouse=True)
def _short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second of training per exit, as there is little to learn."""
    monkeypatch.setattr(run, "_LEAST_TRAIN_SECONDS", 1.0)


def tune(cli: Run, tiny: Path, data: Path | str, out: Path, *options: str) -> Ended:
    return cli(
        *("models", "tune", tiny, "--data", data, "--exits", "1,2", "--out", out, "--tail", "1"),
        *("--rows", "40", "--minutes", "0.1", "--rank", "4", "--memory", "64MiB", *options),
    )


def test_exits_are_made_and_used(cli: Run, tiny: Path, data: Path, tmp_path: Path) -> None:
    """Files, figures and plot are written; a job names the folder and leaves at its exit."""
    out = tmp_path / "exits"
    made = json.loads(tune(cli, tiny, data, out, "--json").out)
    assert [report["metadata"]["depth"] for report in made["exits"]] == [1, 2]
    for report in made["exits"]:
        assert report["flops_per_second"] > 0
        assert [point["loss"] is None for point in report["curve"][:4]] == [True] * 4
        assert 0 <= report["metadata"]["measured"]["held_out"]["agreement"] <= 1
    assert made["matrix_flops_per_second"] > 0
    assert (out / "tuning.png").read_bytes().startswith(b"\x89PNG")
    assert not (out / "_work").exists()
    files = {file: file.stat().st_mtime_ns for file in out.glob("exit-*")}
    assert json.loads(tune(cli, tiny, data, out, "--json").out) == made
    assert files == {file: file.stat().st_mtime_ns for file in files}
    assert sorted(find_exits(open_model(str(tiny)), out)) == [1, 2]
    full = [row for part in out.glob("learn-0-full-depth/*.parquet") for row in read(part)]
    assert len(full) == 32
    assert all(row["exit"]["layers_loaded"] == 4 for row in full)

    spec = write_spec(tmp_path, tiny, depth=2, exits={"path": str(out)})
    assert cli("run", spec).status == 0
    assert {row["exit"]["layers_loaded"] for row in rows(tmp_path)} == {2}
    job = json.loads((tmp_path / "out" / "_job.json").read_text())
    assert job["policy"]["exit"] == "bridge"
    assert job["totals"]["engines"][0]["layers_run"] == 3


def read(part: Path) -> list[dict[str, Any]]:
    return pq.read_table(part).to_pylist()


def test_an_interrupted_tuning_goes_on(
    cli: Run, tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while training keeps the rows, the states and the training; another tuning of the
    same folder is refused."""
    out, write = tmp_path / "exits", run.write_exit

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "write_exit", interrupt)
    ended = tune(cli, tiny, data, out)
    assert ended.status == 130
    assert "goes on from there" in ended.err
    parts = {part: part.stat().st_mtime_ns for part in out.glob("*-full-depth/part-*.parquet")}
    assert parts
    assert (out / "_work" / "exit-01.pt").exists()
    seen = len(torch.load(out / "_work" / "exit-01.pt", weights_only=True)["curve"])
    monkeypatch.setattr(run, "write_exit", write)
    refused = tune(cli, tiny, data, out, "--seed", "1")
    assert refused.status == 2
    assert "another tuning" in refused.err
    made = json.loads(tune(cli, tiny, data, out, "--json").out)
    assert parts == {part: part.stat().st_mtime_ns for part in parts}
    curve = made["exits"][0]["curve"]
    assert len(curve) >= seen > 4
    assert [point["loss"] is None for point in curve] == [True] * 4 + [False] * (len(curve) - 4)


def test_what_can_not_be_tuned_is_said(cli: Run, tiny: Path, data: Path, tmp_path: Path) -> None:
    """Depths, kinds, sizes and data that don't fit are usage errors."""
    out = tmp_path / "exits"
    few, blind = tmp_path / "few.parquet", tmp_path / "blind.parquet"
    labels = write_spec(tmp_path, tiny, task={"type": "label", "choices": ["a", "b"]}, sampling={})
    pq.write_table(pa.table({"text": TEXTS[:5]}), few)
    pq.write_table(pa.table({"question": TEXTS}), blind)
    for source, options, message in [
        (data, ["--exits", "4"], "no exit can be made after layer 4"),
        (data, ["--exits", "a,b"], "write them as 10,15,20"),
        (data, ["--adapt", "1", "--rank", "0"], "adapts no layers"),
        (data, ["--adapt", "2"], "2 layers can't be adapted before an exit after layer 1"),
        (data, ["--kind", "magic"], "the kinds are norm, bridge, mlp and layer"),
        (data, ["--disk", "much"], "size"),
        (data, ["--disk", "50KB"], "too few to learn from"),
        (data, ["--data", str(labels)], "label and generation jobs are mixed"),
        (few, [], "too few"),
        (blind, [], "name a column messages, prompt or text"),
        (tmp_path / "nothing.parquet", [], "nothing.parquet"),
    ]:
        ended = tune(cli, tiny, source, out, *options)
        shutil.rmtree(out, ignore_errors=True)
        assert ended.status == 2, ended.err
        assert message in ended.err


def test_a_label_job_is_tuned_by_its_labels(
    cli: Run, tiny: Path, data: Path, tmp_path: Path
) -> None:
    """Labels at the exit are compared with full depth's on held-out rows, kappa beside it.

    The job may name its exits before they are made, and leave columns out that clash.
    """
    texts = {"text": TEXTS, "label": TEXTS}
    pq.write_table(pa.table(texts), data)
    spec = write_spec(
        tmp_path,
        tiny,
        input={"path": str(data), "columns": ["text"]},
        task={"type": "label", "choices": [" fox", " dog", " cat"]},
        sampling={},
        depth=2,
        exits={"path": str(tmp_path / "exits" / "to-come")},
    )
    made = json.loads(tune(cli, tiny, spec, tmp_path / "exits", "--json").out)
    for report in made["exits"]:
        labels = report["labels"]
        assert labels["rows"] == 8
        assert 0 <= labels["agreement"] <= 1
        assert -1 <= labels["kappa"] <= 1
        assert labels["cost"] > 0
        assert report["metadata"]["choice_temperature"] > 0
