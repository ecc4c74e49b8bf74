"""`models list` and `models show` with what the model repository knows."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import yaml

from helios_batch.models.repository.entry import Entry, Measurement, Quality
from helios_batch.models.repository.record import record
from tests.support.jobs import Run

MEASURED = Measurement(
    task="[b]x",
    hardware="A CPU, 2 threads",
    dtype="float32",
    depth=3,
    tokens_per_second=1234,
    memory_bytes=5_000_000,
    batch=8,
    quality=Quality(metric="exact", against="answers", value=0.25),
    measured_by="a test",
    date=datetime.date(2026, 1, 2),
)


def test_list(cli: Run) -> None:
    """Packs come as ever, beside them what is known of them and of other models."""
    record(Entry(name="some/model", family="opt", exits=(2, 3), measured=(MEASURED,)))
    rows = {row["name"]: row for row in json.loads(cli("models", "list", "--json").out)}
    smollm2, own = rows["smollm2-135m"], rows["some/model"]
    assert (smollm2["license"], smollm2["family"], smollm2["exits"]) == (
        *("Apache-2.0", "llama"),
        [10, 15, 20],
    )
    assert smollm2["fastest"]["measured_by"].startswith("python -m tests.benchmarks")
    assert (own["fetched"], own["num_layers"], own["exits"]) == (None, None, [2, 3])
    assert (own["fastest"]["tokens_per_second"], own["fastest"]["depth"]) == (1234, 3)
    shown = cli("models", "list").out
    assert "some/model" in shown
    assert "1,234" in shown


def test_show(cli: Run, tiny: Path) -> None:
    """A model's measurements come with its shape; one that is not at hand has them alone."""
    assert json.loads(cli("models", "show", str(tiny), "--json").out)["repository"] is None
    record(Entry(name=str(tiny), tokenizer="own", measured=(MEASURED,)))
    facts = json.loads(cli("models", "show", str(tiny), "--json").out)
    assert facts["num_layers"] == 4
    assert facts["repository"]["measured"] == [MEASURED.model_dump(mode="json", exclude_none=True)]
    shown = cli("models", "show", str(tiny)).out
    for text in ("tokenizer group", "1,234", "25.0%", "[b]x"):
        assert text in shown
    # the pack is not in this test's cache
    absent = json.loads(cli("models", "show", "smollm2-135m", "--json").out)
    assert "has not been fetched" in absent["not_at_hand"]
    assert absent["repository"]["tokenizer"] == "smollm2"
    assert "1,143" in cli("models", "show", "smollm2-135m").out


def test_a_repository_that_is_named(cli: Run, tmp_path: Path) -> None:
    """`--repository` takes a file or a folder; a malformed one is a usage error."""
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump({"models": [{"name": "mine", "family": "opt"}]}))
    for path in (file, tmp_path):
        listed = json.loads(cli("models", "list", "--json", "--repository", path).out)
        assert "mine" in [row["name"] for row in listed]
        assert cli("models", "show", "mine", "--repository", path).status == 0
    assert cli("models", "show", "mine").status == 2
    file.write_text("models: [{name: mine, speed: 3}]")
    refused = cli("models", "list", "--repository", file)
    assert refused.status == 2
    assert "speed: unknown key" in refused.err
