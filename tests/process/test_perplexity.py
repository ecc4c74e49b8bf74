"""`depth: auto` with the metric perplexity, from the spec to the summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helios_batch import calibration
from helios_batch.helios.cascade import Observed
from tests.process.test_auto import auto, texts
from tests.support.jobs import Run, rows

__all__ = ["texts"]
QUALITY = {"metric": "perplexity", "confidence": 0.8, "audit_fraction": 0.5}


@pytest.fixture(autouse=True)
def _known_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage costs as its place says: how fast each is depends on what else the machine does."""

    def observed(costs: Any, loads: Any, **rest: Any) -> Observed:
        return Observed(costs=np.arange(1.0, len(costs) + 1), loads=0.0 * loads, **rest)

    monkeypatch.setattr(calibration, "Observed", observed)


def said(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


def test_a_perplexity_is_promised_and_measured(cli: Run, texts: list[str], tmp_path: Path) -> None:
    """Rows leave early within a loose bound; policy, record and summary tell ratios."""
    quality = QUALITY | {"max_perplexity": 6.5, "calibration_rows": 60, "audit_fraction": 0.3}
    spec = auto(tmp_path, texts, quality=quality)
    ended = cli("plan", spec)
    assert "a perplexity of at most 6.5 times full depth's" in said(ended.out), ended.err
    ended = cli("run", spec)
    assert ended.status == 0, ended.err
    kept = json.loads((tmp_path / "out" / "_policy.json").read_text())["policy"]
    policy = json.loads((tmp_path / "out" / "_job.json").read_text())["policy"]
    assert kept.items() <= policy.items()
    assert (policy["metric"], policy["asked"]) == ("perplexity", 6.5)
    assert len(policy["depths"]) > 1
    assert policy["by_stage"][-1]["value"] == 1
    assert all(fact["value"] >= 1 for fact in policy["by_stage"])
    assert 1 <= policy["expected_low"] <= policy["expected"] <= policy["expected_high"]
    assert policy["broken"] is None
    found = policy["measured"]
    assert 1 <= found["low"] <= found["value"] <= found["high"] < 6.5
    assert f"{found['value']:.3f} times full depth's perplexity" in said(ended.out)
    audited = [row["exit"] for row in rows(tmp_path) if row["exit"] and row["exit"]["audited"]]
    assert len(audited) == found["audited_rows"] > 20
    assert any(0 < row["agreement"] < 1 for row in audited)


@pytest.mark.parametrize(("ratio", "reason"), [(1.1, "show nothing"), (1.18, "full depth: ")])
def test_a_ratio_out_of_reach_runs_at_full_depth(
    cli: Run, texts: list[str], tmp_path: Path, ratio: float, reason: str
) -> None:
    """What the job is too small for, or what its rows don't show, falls back and says so."""
    quality = QUALITY | {"max_perplexity": ratio, "calibration_rows": 60}
    spec = auto(tmp_path, texts[:120], quality=quality)
    ended = cli("run", spec)
    assert ended.status == 0, ended.err
    policy = json.loads((tmp_path / "out" / "_job.json").read_text())["policy"]
    assert (policy["depths"], policy["measured"]) == ([12], None)
    assert reason in policy["reason"]
    assert f"a perplexity of at most {ratio} times full depth's" in said(ended.out)
    assert {row["exit"]["layers_loaded"] for row in rows(tmp_path) if row["exit"]} == {12}
