"""`helios-batch run` of a label task on a tiny model: columns, errors, resume, plan, summary."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.engines import make_engine, prompts
from tests.support.jobs import Run, parts, rows, write_spec

CHOICES = [" fox", " lazy dog", "z"]
TEXTS = ["the quick", None, "over the", "0123456789 " * 40, None, "jumps", "", "c", "b", None]


@pytest.fixture
def spec(tmp_path: Path, tiny: Path) -> Path:
    """A label job over ten rows, half of them bad, in shards of 4."""
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "in.parquet")
    return label_spec(tmp_path, tiny)


def label_spec(folder: Path, model: Path, **changes: Any) -> Path:
    task = {"type": "label", "choices": CHOICES}
    return write_spec(folder, model, **{"task": task, "depth": 3} | changes)


def test_a_label_job_end_to_end(cli: Run, tmp_path: Path, tiny: Path, spec: Path) -> None:
    """Each row has the engine's label and probabilities, or its error; parts have one schema."""
    ended = cli("run", spec, "--show", "2")
    assert ended.status == 0, ended.err
    assert len({pq.read_schema(part).remove_metadata() for part in parts(tmp_path)}) == 1
    assert pq.read_schema(parts(tmp_path)[0]).names[2:5] == [
        "generated_text",
        "label",
        "label_probability",
    ]
    out = rows(tmp_path)
    codes = ["null_prompt", "prompt_too_long", "null_prompt", "empty_prompt", "null_prompt"]
    assert [row["error"]["code"] for row in out if row["error"]] == codes
    assert all(row["label"] is row["label_probability"] is None for row in out if row["error"])
    good = [row for row in out if not row["error"]]
    texts = [row["text"] for row in good]
    for row, found in zip(good, make_engine(tiny, 3).label(prompts(*texts), CHOICES), strict=True):
        assert found.label_probability is not None
        rounded = np.float32(found.label_probability).tolist()
        shares = dict(zip(CHOICES, rounded, strict=True))
        assert row["label_probability"] == shares
        assert row["label"] == row["generated_text"] == found.label
        assert row["finish_reason"] == "stop"
        assert row["exit"]["mean_confidence"] == shares[row["label"]]
        assert row["exit"]["token_layers"] == [3] * row["completion_tokens"]
    counts = Counter(row["label"] for row in good)
    assert json.loads((tmp_path / "out" / "_job.json").read_text())["totals"]["labels"] == counts
    label, count = counts.most_common(1)[0]
    assert f"{label} {count}" in ended.out


def test_a_label_job_resumes(cli: Run, tmp_path: Path, tiny: Path, spec: Path) -> None:
    """A lost part is labelled again as before; another limit of tokens is the same job, other
    choices are another."""
    assert cli("run", spec).status == 0
    expected = rows(tmp_path)
    parts(tmp_path)[1].unlink()
    label_spec(tmp_path, tiny, sampling={"max_tokens": 1})
    again = json.loads(cli("run", spec, "--json").out)
    assert again["resumed_rows"] == 6
    assert sum(again["totals"]["labels"].values()) == 5
    assert rows(tmp_path) == expected
    label_spec(tmp_path, tiny, task={"type": "label", "choices": CHOICES[:2]})
    ended = cli("run", spec)
    assert (ended.status, "spec.task.choices" in ended.err) == (2, True)


def test_the_plan_counts_choices(cli: Run, tmp_path: Path, tiny: Path, spec: Path) -> None:
    """Memory is planned for a prompt with all its choices; a choice that could never win is
    refused before anything is written."""
    plan = json.loads(cli("plan", spec, "--json").out)
    assert plan["sample_errors"] == {"null_prompt": 3, "prompt_too_long": 1, "empty_prompt": 1}
    assert plan["max_new_tokens"] == 2
    assert plan["sequence_tokens"] > plan["prompt_tokens"][2] + plan["max_new_tokens"]
    label_spec(tmp_path, tiny, task={"type": "label", "choices": ["9", "98"]})
    for name in ("plan", "run"):
        ended = cli(name, spec)
        assert ended.status == 2
        assert "the tokens of choice '98' begin with all those of '9'" in ended.err
    assert not (tmp_path / "out").exists()
