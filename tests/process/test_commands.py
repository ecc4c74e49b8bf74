"""`plan`, `models` and `doctor`."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.jobs import Run, write_spec


def test_plan_writes_nothing(cli: Run, tmp_path: Path, tiny: Path) -> None:
    """`plan` shows rows, tokens, shards, failures to come and memory by depth."""
    texts = ["fox " * 5] * 9 + [None]
    pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")
    spec = write_spec(tmp_path, tiny)
    made = json.loads(cli("plan", spec, "--json").out)
    assert (made["rows"], made["shards"]) == (10, 3)
    assert made["sample_errors"] == {"null_prompt": 1}
    assert made["prompt_tokens"][0] == made["prompt_tokens"][2] > 0
    batches = [depth["batch_size"] for depth in made["memory"]]
    assert batches == sorted(batches, reverse=True)
    assert "Memory by depth" in cli("plan", spec).out
    assert not (tmp_path / "out").exists()


def test_models_and_doctor(cli: Run, tiny: Path) -> None:
    """The other commands answer, in JSON where asked."""
    packs = {pack["name"]: pack for pack in json.loads(cli("models", "list", "--json").out)}
    assert not packs["smollm2-135m"]["fetched"]
    shipped = packs["helios-nano-docs"]
    assert shipped["fetched"]
    assert cli("models", "fetch", "helios-nano-docs").out.strip().endswith("helios-nano-docs")
    nano = json.loads(cli("models", "show", "helios-nano-docs", "--json").out)
    assert (nano["num_layers"], nano["native_exits"]) == (12, True)
    shown = json.loads(cli("models", "show", str(tiny), "--json").out)
    assert (shown["num_layers"], shown["native_exits"]) == (4, False)
    assert cli("models", "show", "nope").status == 2
    assert cli("models", "fetch", "nope").status == 2
    checks = {finding["check"]: finding for finding in json.loads(cli("doctor", "--json").out)}
    assert checks["pack smollm2-135m"]["fix"] == "helios-batch models fetch smollm2-135m"
    for arguments in (["doctor"], ["models", "list"], ["models", "show", str(tiny)], ["--help"]):
        assert cli(*arguments).status == 0
    assert cli("run").status == 2
    assert cli("run", "absent.yaml").status == 2
