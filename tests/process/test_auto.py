"""`depth: auto` on a real early-exit model: calibrated, promised, audited, resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helios_batch.helios.agreement import token_agreement
from helios_batch.helios.policy import Policy
from helios_batch.job import prepare
from helios_batch.policy_file import Calibration, publish_calibration, read_calibration
from helios_batch.samples import docstrings
from helios_batch.spec_file import load_spec
from helios_batch.staged import is_drawn
from tests.support.jobs import Run, parts, rows, write_spec

MODEL = "helios-nano-docs"
ROWS = 240
RESOURCES = {"dtype": "float32", "memory": "128MiB", "threads": 1}
QUALITY = {"min_agreement": 0.5, "confidence": 0.8, "calibration_rows": 60, "audit_fraction": 0.1}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Beginnings of docstrings, one of them empty."""
    found = [row["docstring"][:60] for row, _ in zip(docstrings(), range(ROWS), strict=False)]
    return [*found[:-1], ""]


def auto(folder: Path, texts: list[str], **changes: Any) -> Path:
    pq.write_table(pa.table({"text": texts}), folder / "in.parquet")
    given = {"depth": "auto", "quality": QUALITY, "sampling": {"max_tokens": 8}} | changes
    output = {"path": str(folder / "out"), "rows_per_shard": 60}
    return write_spec(folder, MODEL, output=output, resources=RESOURCES, **given)


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a row cost as much as it runs through layers, however busy this machine is."""
    from helios_batch import calibration

    observe = calibration._observe

    def steadily(job: Any, sole: Any, prompts: Any, stages: Any, *more: Any) -> Any:
        seen = observe(job, sole, prompts, stages, *more)
        costs = np.array([stage.layers for stage in stages]) / 12
        loads = np.zeros(len(stages))
        return seen._replace(observed=replace(seen.observed, costs=costs, loads=loads))

    monkeypatch.setattr(calibration, "_observe", steadily)


@pytest.mark.usefixtures("steady")
def test_rows_leave_where_the_policy_says(cli: Run, texts: list[str], tmp_path: Path) -> None:
    """Each row once, at the first stage that is sure of it; what was run at full depth is kept;
    an audited row's agreement is that with full depth; a lost part comes back as it was."""
    spec = auto(tmp_path, texts)
    ended = cli("run", spec)
    assert ended.status == 0, ended.err
    assert "full depth's cost" in " ".join(ended.out.replace("│", " ").split())
    job = json.loads((tmp_path / "out" / "_job.json").read_text())
    policy = job["policy"]
    assert policy["decided_by"] == "calibration"
    assert policy["depths"][-1] == 12
    assert len(policy["depths"]) > 1
    assert policy["seconds"] < policy["full_seconds"]
    full = write_spec(
        tmp_path,
        MODEL,
        depth="full",
        sampling={"max_tokens": 8},
        output={"path": str(tmp_path / "full" / "out")},
        resources=RESOURCES,
    )
    assert cli("run", full).status == 0
    found, whole = rows(tmp_path), rows(tmp_path / "full")
    spec = auto(tmp_path, texts)
    calibration = read_calibration(prepare(load_spec(str(spec))).output, job["fingerprint"])
    assert calibration is not None
    known = {answer.row for answer in calibration.answers}
    assert 50 <= len(known) <= 60
    audited = 0
    for number, (row, reference) in enumerate(zip(found, whole, strict=True)):
        if number == ROWS - 1:
            assert row["error"]["code"] == "empty_prompt"
            continue
        exit_ = row["exit"]
        depth = exit_["layers_loaded"]
        assert depth == policy["depths"][exit_["stage"]]
        assert exit_["breaches"] == sum(
            sure < policy["threshold"] for sure in exit_["token_confidences"]
        )
        if depth == 12:
            assert row["generated_text"] == reference["generated_text"]
            assert not exit_["audited"]
        else:
            assert number not in known
            assert exit_["mean_confidence"] >= policy["threshold"]
        audited += exit_["audited"]
        if not exit_["audited"]:
            assert exit_["agreement"] is None
        elif row["generated_text"] == reference["generated_text"]:
            assert exit_["agreement"] == 1
        else:
            assert exit_["agreement"] < 1
    totals = job["totals"]
    assert totals["audited_rows"] == audited > 0
    drawn = [row for row in range(ROWS - 1) if row not in known and is_drawn(row, 0.1)]
    assert sum(totals["audit_losses"].values()) == len(drawn) > 5
    assert sum(totals["stages"].values()) == ROWS - 1

    before = [pq.read_table(part) for part in parts(tmp_path)]
    parts(tmp_path)[1].unlink()
    assert cli("run", spec).status == 0
    assert all(a.equals(pq.read_table(b)) for a, b in zip(before, parts(tmp_path), strict=True))


def test_a_policy_keeps_its_type(cli: Run, texts: list[str], tmp_path: Path) -> None:
    """What was calibrated in one type is not gone on with in another."""
    spec = auto(tmp_path, texts)
    assert cli("run", spec).status == 0
    for part in parts(tmp_path):
        part.unlink()
    text = spec.read_text().replace("dtype: float32", "dtype: bfloat16")
    spec.write_text(text)
    ended = cli("run", spec)
    assert ended.status == 2
    assert "calibrated in float32" in ended.err
    spec.write_text(text.replace("dtype: bfloat16", "dtype: auto"))
    assert cli("run", spec).status == 0
    job = json.loads((tmp_path / "out" / "_job.json").read_text())
    assert {engine["dtype"] for engine in job["totals"]["engines"]} == {"float32"}


@pytest.mark.parametrize(
    ("quality", "reason"),
    [
        ({"min_agreement": 0.999}, "show nothing"),
        ({"min_agreement": 0.9, "metric": "exact"}, "full depth: "),
        ({"min_agreement": 0.95, "calibration_rows": 40}, "show nothing"),
    ],
)
def test_what_can_not_be_promised_runs_at_full_depth(
    cli: Run, texts: list[str], tmp_path: Path, quality: dict[str, Any], reason: str
) -> None:
    """A bound that is out of reach, or a job too small for it, is said and falls back."""
    spec = auto(tmp_path, texts[:120], quality=QUALITY | quality)
    planned = cli("plan", spec).out
    assert "agreement in" in planned
    ended = cli("run", spec)
    assert ended.status == 0, ended.err
    policy = json.loads((tmp_path / "out" / "_job.json").read_text())["policy"]
    assert policy["depths"] == [12]
    assert reason in policy["reason"]
    assert reason in " ".join(ended.out.replace("│", " ").split())
    assert {row["exit"]["layers_loaded"] for row in rows(tmp_path) if row["exit"]} == {12}


def test_a_broken_promise_is_noticed(
    cli: Run, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where audited rows disagree far more than was promised, later rows run at full depth, also
    in later runs, and it is said."""
    from helios_batch import staged

    monkeypatch.setattr(staged, "agreements", lambda prompts, *_: [[0.0] * len(prompts)])
    spec = auto(tmp_path, texts, quality=QUALITY | {"audit_fraction": 1.0})
    job = prepare(load_spec(str(spec)))
    # what a calibration finds depends on this machine's speed
    decided = Policy(
        (job.model.name,) * 2,
        (6, 12),
        *(0.0, 0.5, 0.8, "token", 0, "for the test"),
        seconds=0.5,
        full_seconds=1.0,
        kept=(1.0, 0.0),
    )
    publish_calibration(job.output, Calibration(job.fingerprint, "float32", decided, ()))
    assert cli("run", spec).status == 0
    depths = [
        {row["exit"]["layers_loaded"] for row in pq.read_table(part).to_pylist() if row["exit"]}
        for part in parts(tmp_path)
    ]
    assert depths == [{6}, {12}, {12}, {12}]
    policy = json.loads((tmp_path / "out" / "_job.json").read_text())["policy"]
    assert policy["broken"]["mean_loss"] == 1.0
    for row in rows(tmp_path):
        if row["exit"]:
            assert row["exit"]["layers_loaded"] == policy["depths"][row["exit"]["stage"]]
    (tmp_path / "out" / "_SUCCESS").unlink()
    parts(tmp_path)[0].unlink()
    ended = cli("run", spec)
    assert ended.status == 0, ended.err
    assert "BROKEN PROMISE" in ended.out
    first = pq.read_table(parts(tmp_path)[0]).to_pylist()
    assert {row["exit"]["layers_loaded"] for row in first} == {12}


def test_token_agreement_counts_places() -> None:
    """A place that only one text has counts against it."""
    assert token_agreement([1, 2, 3], [1, 2]) == pytest.approx(2 / 3)
    assert token_agreement([1, 5], [1, 2]) == 0.5
    assert token_agreement([], []) == 1


def test_a_job_of_bad_rows_still_ends(cli: Run, tmp_path: Path) -> None:
    """Where no row can be run there is nothing to calibrate on, and each row has its error."""
    spec = auto(tmp_path, [""] * 80, quality={"min_agreement": 0.5, "calibration_rows": 20})
    ended = cli("run", spec)
    assert ended.status == 0, ended.err
    policy = json.loads((tmp_path / "out" / "_job.json").read_text())["policy"]
    assert "can be run" in policy["reason"]
    assert [row["error"]["code"] for row in rows(tmp_path)] == ["empty_prompt"] * 80
