"""`bench policy` on a job: every policy runs, and is compared with full depth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.process.conftest import Run
from tests.support.parquet import write_rows

NANO = ("helios-nano-docs", "helios-nano-code")


def spec(folder: Path, **changes: object) -> Path:
    """Write a job over 12 short rows."""
    write_rows(folder / "in.parquet", 12)
    data = {
        "name": "bench",
        "input": {"path": str(folder / "in.parquet")},
        "prompt": {"template": "The function {{ text }}"},
        "sampling": {"max_tokens": 6},
        "models": [NANO[0]],
        "output": {"path": str(folder / "out"), "rows_per_shard": 8},
        "resources": {"memory": "96MiB", "dtype": "float32"},
    } | changes
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_all_policies_run_on_the_same_rows(cli: Run, tmp_path: Path) -> None:
    """Two models: each alone, then both; batch 1 is batch 1, and full depth agrees with itself."""
    both = {"models": list(NANO), "depth": "auto", "policy": {"type": "helios", "threshold": 0.1}}
    ended = cli("bench", "policy", spec(tmp_path, **both), "--rows", 10, "--json")
    assert ended.status == 0, ended.err
    found = {one["name"]: one for one in json.loads(ended.out)}
    kinds = ("vanilla", "ee batch 1", "ee batched", "helios-single")
    expected = [f"{kind} {model}" for model in NANO for kind in kinds]
    assert list(found) == [*expected, "helios batch 1", "helios"]
    whole = found[f"vanilla {NANO[0]}"]
    assert (whole["agreement"], whole["full"], whole["perplexity"]) == (1, 1, 1)
    assert found["helios batch 1"]["batch_limit"] == found[f"ee batch 1 {NANO[0]}"]["batch"] == 1
    assert all(one["rows_per_second"] > 0 for one in found.values())
    assert found["helios"]["profile"] > 0
    assert not (tmp_path / "out").exists()


def test_some_policies_with_promises_and_plots(cli: Run, tmp_path: Path) -> None:
    """Only those that are named run beside full depth; a promise too large for the job falls
    back."""
    command = ("bench", "policy", spec(tmp_path), "--rows", 4, "--only", "promise", "--bounds", 0.9)
    ended = cli(*command, "--plots", tmp_path / "plots")
    assert ended.status == 0, ended.err
    assert "promise 0.9" in ended.out
    assert "ee" not in ended.out.split()
    assert {file.name for file in (tmp_path / "plots").iterdir()} == {
        "policies.png",
        "policies.json",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [((), "say what to compare"), (("--simulate", "job.yaml"), "say what to compare")],
)
def test_what_is_compared_has_to_be_said(cli: Run, options: tuple[str, ...], message: str) -> None:
    """Neither nothing nor both."""
    ended = cli("bench", "policy", *options)
    assert (ended.status, message in ended.err) == (2, True)
